"""The commands behind `make local`, `make local-down` and `make demo`."""

import os
import signal
import sys
from collections.abc import Callable

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from local import FOLDER, ROOT, LocalError, stack
from local.console import Console
from local.demo import Demo

USAGE = """\
usage: python -m local up | down | demo

  up     start the stack on this machine, or bring the one that runs up to date
  down   end it
  demo   do the same as up, then show what the stack does
"""


def up(console: Console) -> None:
    """Start or update the stack, and leave it running."""
    running = stack.up(report=console)
    _say_what_next(running, console)


def down(console: Console) -> None:
    """Stop the stack."""
    console.say("The stack is ended." if stack.down() else "No stack runs here.")


def demo(console: Console) -> None:
    """Start or update the stack and run the demo; leave the stack running except in CI."""
    try:
        running = stack.up(report=console)
        Demo(running, console).run()
        if os.environ.get("CI"):
            console.say()
            console.say("The stack ends here, since CI is set.")
        else:
            _say_what_next(running, console)
    finally:
        if os.environ.get("CI"):
            stack.down()


def _say_what_next(running: stack.Stack, console: Console) -> None:
    console.say()
    console.say("The stack runs. In the shell that 'make shell' opens, every command of the")
    console.say("documentation works as it is written; this one sends a message:")
    console.say()
    console.say('  api --json @events/send_sms.json "$ActionsApiUrl/messages"')
    console.say()
    console.say(f"  look    {running['twilio']['url']}  what Twilio's emulator sent and received")
    console.say(f"          {(FOLDER / 'logs').relative_to(ROOT)}  the logs of all parts")
    console.say("  read    docs/start.md")
    console.say("  end     make local-down")


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
    """Raise KeyboardInterrupt, so that a signal ends the command and cleans up as Ctrl-C does."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
