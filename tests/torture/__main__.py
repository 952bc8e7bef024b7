"""`make torture`: one run and its verdict."""

import argparse
import secrets
import signal
import sys
import time
from contextlib import ExitStack

from botocore.exceptions import BotoCoreError, ClientError
from requests import RequestException

from local import FOLDER, LocalError, processes
from tests.torture import verdict
from tests.torture.journal import Journal
from tests.torture.run import Torture, step
from tests.torture.schedule import FULL, SHORT
from tests.torture.setting import setting

_FOLDER = FOLDER / "torture"
_WAVES = {FULL: 2, SHORT: 1}


def main(arguments: list[str]) -> int:
    """Run, judge, and return the exit code."""
    options = _options(arguments)
    seed = secrets.randbelow(10_000) if options.seed is None else options.seed
    size = SHORT if options.short else FULL
    waves = _WAVES[size]
    if options.sends:
        size = size._replace(sends=options.sends)
    folder = _FOLDER / f"{time.strftime('%Y%m%dT%H%M%S')}-{seed}"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    journal = Journal(folder)
    much = f"{size.sends:,} sends, {size.webhooks:,} webhooks"
    print(f"seed {seed}, {much}, records in {folder.relative_to(FOLDER.parent)}")
    try:
        with ExitStack() as ending:
            ending.enter_context(processes.exclusive(_FOLDER / "run.lock", busy="Another run is at work: wait for it."))
            with step("start the stack behind relay and proxy"):
                place = ending.enter_context(setting(_FOLDER, journal, seed))
            ending.enter_context(Torture(place, journal, seed, size)).run(waves)
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
    print()
    return verdict.judge(folder)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, help="of an earlier run, to repeat it")
    parser.add_argument("--sends", type=int, help="ordinary sends, besides crashes, races, redeliveries and conflicts")
    parser.add_argument("--short", action="store_true", help="the same in small")
    return parser.parse_args(arguments)


def _interrupt(number: int, _frame: object) -> None:
    """End as Ctrl-C does, and clean up."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
