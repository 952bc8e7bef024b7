"""Run one job in this process as often as requested, and report the time and memory.

The interpreter of Lambda's runtime runs this module with a candidate's path and environment. Commands come as lines of
JSON on standard input, and answers go to standard output. The output of the measured code is discarded.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench import events
from bench.account import AUTH_TOKEN, MESSAGES, PHONE

SECONDS = 300

type Job = Callable[[int], tuple[Callable[[], object], ...]]
"""Returns this many calls to measure, with everything prepared that must not be measured."""


class Context:
    """Lambda's context; each invocation gets its own."""

    aws_request_id = "00000000-0000-4000-8000-000000000000"
    function_name = "function"
    function_version = "1"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:function"
    log_group_name = "function"
    log_stream_name = "1"
    memory_limit_in_mb = 512

    def get_remaining_time_in_millis(self) -> int:
        """Return the remaining time."""
        return SECONDS * 1000


def handler(name: str) -> Callable[[Any, Any], Any]:
    """Return a handler by its name in Lambda's configuration."""
    module, _, attribute = name.rpartition(".")
    found: Callable[[Any, Any], Any] = getattr(importlib.import_module(module), attribute)
    return found


def calls(name: str, shape: str) -> Job:
    """Return the job that invokes a handler with events of one shape."""
    function, make = handler(name), events.SHAPES[shape]
    numbers = _numbers()

    def prepare(count: int) -> tuple[Callable[[], object], ...]:
        return tuple(partial(function, make(next(numbers)), Context()) for _ in range(count))

    return prepare


def validations(name: str) -> Job:
    """Return the job that checks the signature of a parsed form of 20 fields."""
    url = "https://hooks.example.com/webhook"
    form = events.FORM_OF_20_FIELDS
    signature = events.signature(url, form)
    if name == "official":
        validator = importlib.import_module("twilio.request_validator").RequestValidator(AUTH_TOKEN)
        check = partial(validator.validate, url, form, signature)
    else:
        ours = importlib.import_module("twilio_connector.webhooks.signature")
        fields = {name: [value] for name, value in form.items()}
        key = ours.Key(AUTH_TOKEN)
        check = partial(lambda: ours.matches(signature, ours.signed_text(url, fields), key))

    def genuine() -> dict[str, object]:
        if not check():
            raise ValueError("the signature does not hold")
        return {}

    return lambda count: (genuine,) * count


def lists(name: str) -> Job:
    """Return the job that lists all messages of the account, with as many calls as it needs."""
    function = handler(name)

    def whole() -> dict[str, object]:
        token, count = None, 0
        while True:
            wanted = {"limit": 5000} | ({"page_token": token} if token else {})
            answer = function(wanted | ({"page_size": 1000} if name.startswith("list_sms") else {}), Context())
            count += len(answer["messages"])
            json.dumps(answer, ensure_ascii=False)  # as the runtime client does
            if (token := answer["next_page_token"]) is None:
                break
        if count != MESSAGES:
            raise ValueError(f"{count} messages instead of {MESSAGES}")
        return {}

    return lambda count: (whole,) * count


def ledger_writes() -> Job:
    """Return the job that makes only the two writes of a keyed send."""
    idempotency = importlib.import_module("twilio_connector.messaging.idempotency")
    store = importlib.import_module("twilio_connector.messaging.idempotency_store")
    table = store.IdempotencyStore(os.environ["LEDGER_TABLE"])
    numbers = _numbers()

    def both(index: int) -> dict[str, object]:
        claim = idempotency.new_claim(
            idempotency_key=f"alone-{index}",
            connection="default",
            caller="sqs",
            same="0" * 64,
            sms=events.sms(index),
            sought=idempotency.MessageMatch(to=PHONE, body=events.sms(index)["message"]),
            lease_seconds=60,
        )
        record = table.write(idempotency.ClaimRequested(claim, resend=False))
        table.write(idempotency.Accepted({"sid": f"SM{index:032x}"}), record)
        return {}

    return lambda count: tuple(partial(both, next(numbers)) for _ in range(count))


JOBS: dict[str, Callable[..., Job]] = {
    "calls": calls,
    "validations": validations,
    "lists": lists,
    "ledger_writes": ledger_writes,
}


def _numbers() -> Iterator[int]:
    """Return consecutive numbers, which start at a different one in each process."""
    return iter(range(os.getpid() * 1_000_000, sys.maxsize))


def _measured(job: Job, count: int, warm_up: int) -> dict[str, float]:
    """Run a job this many times after a warm-up; return the seconds per run, and the peak memory."""
    for act in job(warm_up):
        act()
    acts = job(count)
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    answers = [act() for act in acts]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if faults := [fault for answer in answers if (fault := events.fault(answer))]:
        raise ValueError(faults[0])
    return {"wall": wall / count, "cpu": cpu / count, "memory": peak_bytes()}


def peak_bytes(pid: int | str = "self") -> int:
    """Return the peak memory of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 less to import
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str, *arguments: str) -> None:
    """Run a job for each command on standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = JOBS[name](*arguments)
    for line in sys.stdin:
        out.write(json.dumps(_measured(job, **json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
