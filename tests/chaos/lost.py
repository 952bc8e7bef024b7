"""Measure the duration of sends whose answers are lost, and the requests that sends cost, for this or another commit.

    .venv/bin/python -m tests.chaos.lost                # this code
    .venv/bin/python -m tests.chaos.lost ../before      # the code of another worktree

Twilio and AWS are fakes on loopback that answer as slowly as the real services. One answer in 20 is lost. One in ten
of these hangs until the connector times out; for the others, the connection breaks. No callback can come, so only
Twilio's list shows the messages whose answers were lost. Then time passes, and `resolve` runs each minute.
"""

import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from email.utils import formatdate
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.aws_wire import AwsWire
from tests.chaos.table import figure
from tests.conftest import Context
from tests.faults import AwsFault, AwsProxy, Fault, FaultServer, Request, aws, faults
from tests.faults.wire import Exchange

SENDS = 1000
_LOST_IN = 20
_HANGS_IN = 10  # of the lost answers
_TWILIO_SECONDS = 0.1
_AWS_SECONDS = 0.01
_THREADS = 8
_MINUTES = 20
_FROM = "+15551234567"
_SECRET = {
    "account_sid": "AC" + "0" * 32,
    "api_key_sid": "SK" + "0" * 32,
    "api_key_secret": "not-a-secret",
    "default_from": _FROM,
}


class Took(NamedTuple):
    """One send: how its answer was lost (None if it was not), the caller's result, and the duration in seconds."""

    lost: str | None
    answer: str
    seconds: float


class Twilio(FaultServer):
    """A fake Twilio that answers slowly, loses answers, and lists the messages it accepted."""

    def _marker(self, request: Request) -> Fault:
        fault = super()._marker(request) or faults.OK
        if request.method == "POST":
            form = {name.lower(): values[0] for name, values in request.form.items() if name in {"To", "From", "Body"}}
            with self._changed:
                self._account.history.add(None, **form, date_created=formatdate(time.time()))
        return replace(fault, act=functools.partial(_slowly, fault.act))


def _slowly(act: Callable[[Exchange], None], exchange: Exchange) -> None:
    exchange.pause(_TWILIO_SECONDS)
    act(exchange)


def how(number: int) -> str | None:
    """Return the fault that loses the answer to a send, or None."""
    if number % _LOST_IN:
        return None
    return "hang" if number // _LOST_IN % _HANGS_IN == _HANGS_IN - 1 else "reset_after_read"


def main(arguments: Sequence[str]) -> int:
    """Measure the code of a folder, and print a table."""
    root = Path(arguments[0] if arguments else ".").resolve()
    sys.path[:0] = [str(root / "functions"), str(root / "layers" / "twilio")]
    with AwsWire() as wire, AwsProxy(wire.url) as proxy, Twilio() as twilio:
        wire.secrets["twilio/default"] = json.dumps(_SECRET)
        proxy.add(AwsFault(aws.delay(_AWS_SECONDS)))
        os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "TWILIO_API_URL": twilio.url}
        with redirect_stdout(StringIO()):  # the functions' log
            lines = list(measure(proxy, twilio, SENDS, _MINUTES))
        print("\n".join(lines))
    return 0


def measure(proxy: AwsProxy, twilio: Twilio, sends: int, minutes: int) -> Iterator[str]:
    """Send this many messages, let minutes pass, and yield the lines of a table."""
    # Imported here, because `main` has just put the code to measure on the path.
    import resolve  # noqa: PLC0415
    import send_sms  # noqa: PLC0415

    def send(number: int) -> Took:
        lost = how(number)
        sms = {
            "to": f"+1555010{number % 10_000:04}",
            "message": f"Parcel {number}" + (f" fault={lost}" if lost else ""),
            "idempotency_key": f"lost-{number}",
        }
        began = time.monotonic()
        try:
            send_sms.handler(sms, Context())
            answer = "sent"
        except Exception as error:  # noqa: BLE001 its class is the answer
            answer = type(error).__name__
        return Took(lost, answer, time.monotonic() - began)

    def requests() -> Counter[str]:
        counts = Counter(f"Twilio {request.method}" for request in twilio.requests)
        counts.update(f"{call.service} {call.operation}" for call in proxy.calls)
        twilio.reset()
        proxy.reset()
        proxy.add(AwsFault(aws.delay(_AWS_SECONDS)))
        return counts

    with ThreadPoolExecutor(_THREADS) as pool:
        took = list(pool.map(send, range(sends)))
    history = twilio._account.history
    yield from _answers(took)
    yield from _requests("requests of sends", requests(), sends)
    twilio._account.history = history
    now = time.time
    for minute in range(1, minutes + 1):
        with mock.patch("time.time", lambda minute=minute: now() + 60 * minute):
            resolve.handler({}, Context(120))
    yield from _requests(f"requests of resolve in {minutes} minutes", requests(), sends)


def _answers(took: Sequence[Took]) -> Iterator[str]:
    for lost in (None, "reset_after_read", "hang"):
        if not (each := [one for one in took if one.lost == lost]):
            continue
        answers = ", ".join(f"{name} {n}" for name, n in Counter(one.answer for one in each).most_common())
        percentiles = statistics.quantiles((one.seconds for one in each), n=100, method="inclusive")
        seconds = f"half within {percentiles[49]:.2f} s, 99 % within {percentiles[98]:.2f} s"
        yield figure(f"answer {f'lost: {lost}' if lost else 'came'}", len(each), f"{seconds}; {answers}")


def _requests(title: str, counts: Counter[str], sends: int) -> Iterator[str]:
    yield figure(title, counts.total(), f"{counts.total() / sends:.3f} for each send")
    for few in itertools.batched(sorted(counts.items()), 4, strict=False):
        yield "  " + ", ".join(f"{name} {count:,}" for name, count in few)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
