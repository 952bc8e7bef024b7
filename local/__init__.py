"""The stack on this machine: AWS and Twilio emulators on loopback, and the template deployed to them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".local"  # of the stack that `make local` leaves running


class LocalError(Exception):
    """Something that a person has to know; the message says what, and what to do about it."""
