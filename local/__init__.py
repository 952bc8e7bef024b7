"""The local stack: emulators of AWS and Twilio on loopback, with the template deployed to them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local"  # the folder of the stack that `make local` starts


class LocalError(Exception):
    """An error for the user at the terminal; the message states the problem and the remedy."""
