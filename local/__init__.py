"""The stack on this machine: AWS and Twilio emulators on loopback, and the template deployed to them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local"  # of the stack that `make local` leaves running


class LocalError(Exception):
    """An error for the person at the terminal: the message says what happened, and what to do."""
