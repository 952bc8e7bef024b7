"""`make chaos`: three runs with different seeds, and one verdict; one run if it is short or its seed is given."""

import argparse
import secrets
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from local import FOLDER, LocalError, processes
from tests.chaos import verdict
from tests.chaos.journal import Journal
from tests.chaos.run import Chaos, step
from tests.chaos.schedule import FULL, SHORT, Size, plan
from tests.chaos.setting import setting

_FOLDER = FOLDER / "chaos"
_SEEDS = 3


def main(arguments: list[str]) -> int:
    """Run the chaos test, judge its runs, and return the exit code."""
    options = _options(arguments)
    size = SHORT if options.short else FULL
    if options.sends:
        size = size._replace(sends=options.sends)
    first = secrets.randbelow(10_000) if options.seed is None else options.seed
    count = 1 if options.short or options.seed is not None else _SEEDS
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.strftime("%Y%m%dT%H%M%S")
    folders = [_FOLDER / f"{began}-{seed}" for seed in range(first, first + count)]
    for seed, folder in enumerate(folders, start=first):
        if code := _run(folder, seed, size):
            return code
    print()
    return verdict.judge(*folders)


def _run(folder: Path, seed: int, size: Size) -> int:
    """Run with one seed; return 0 if the run finished, else an exit code."""
    journal = Journal(folder)
    much = f"{len(plan(seed, size)):,} keys, {size.webhooks:,} webhooks"
    print(f"seed {seed}, {much}, records in {folder.relative_to(FOLDER.parent)}")
    try:
        with ExitStack() as ending:
            ending.enter_context(processes.exclusive(_FOLDER / "run.lock", busy="Another run is at work: wait for it."))
            with step("start the stack behind relay and proxy"):
                place = ending.enter_context(setting(_FOLDER, journal, seed))
            ending.enter_context(Chaos(place, journal, seed, size)).run()
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError, RequestException) as error:
        print(f"An emulator does not answer as it should: {error}. Its log is in {_FOLDER / 'logs'}.", file=sys.stderr)
        return 1
    except ExceptionGroup as error:
        print(f"{error}: {error.exceptions[0]!r}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    finally:
        journal.close()
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    parser.add_argument("--sends", type=int, help="ordinary sends, besides crashes, races, redeliveries and conflicts")
    parser.add_argument("--short", action="store_true", help="the same in small")
    return parser.parse_args(arguments)


def _interrupt(number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt, so that a signal ends the run and cleans up as Ctrl-C does."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
