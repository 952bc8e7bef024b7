"""The commands behind `make local`, `make local-down` and `make demo`."""

import os
import signal
import sys
from collections.abc import Callable

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from local import FOLDER, LocalError, stack
from local.console import Console
from local.demo import Demo

USAGE = """\
usage: python -m local up | down | demo

  up     start the stack on this machine, or bring the one that runs up to date
  down   end it
  demo   do the same as up, then show what the stack does
"""


def up(console: Console) -> None:
    """Leave the stack running."""
    running = stack.up(report=console)
    console.say()
    console.say(f"The stack runs; {FOLDER / 'stack.json'} says where. 'make local-down' ends it.")
    console.say(f"Twilio's inspector: {running['twilio']['url']}")


def down(console: Console) -> None:
    """End the stack."""
    console.say("The stack is ended." if stack.down() else "No stack runs here.")


def demo(console: Console) -> None:
    """Show what the stack does; leave it running, but not in CI."""
    try:
        running = stack.up(report=console)
        Demo(running, console).run()
        console.say()
        console.say(f"All of it is in Twilio's inspector: {running['twilio']['url']}")
        console.say(f"Logs of all parts: {FOLDER / 'logs'}")
        if os.environ.get("CI"):
            console.say("The stack ends here, since CI is set.")
        else:
            console.say("The stack still runs. 'make local-down' ends it.")
    finally:
        if os.environ.get("CI"):
            stack.down()


COMMANDS: dict[str, Callable[[Console], None]] = {"up": up, "down": down, "demo": demo}


def main(arguments: list[str]) -> int:
    """Run a command; return the exit code."""
    match arguments:
        case [name] if name in COMMANDS:
            command = COMMANDS[name]
        case ["-h" | "--help"]:
            sys.stdout.write(USAGE)
            return 0
        case _:
            sys.stderr.write(USAGE)
            return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console()
    try:
        command(console)
    except LocalError as error:
        console.fail(str(error))
        return 1
    except (BotoCoreError, ClientError, RequestException) as error:
        console.fail(f"An emulator does not answer as it should: {error}. Its log is in {FOLDER / 'logs'}.")
        return 1
    except KeyboardInterrupt:
        console.fail("Interrupted.")
        return 130
    return 0


def _interrupt(number: int, _frame: object) -> None:
    """End as Ctrl-C does, and clean up."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
