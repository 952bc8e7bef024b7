"""Find out whether messages with an unknown outcome were sent, and report it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from twilio_connector import telemetry
from twilio_connector.aws.lease import Leases
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectorError, ServiceUnavailableError
from twilio_connector.invocation.function import Invocation, lambda_function
from twilio_connector.messaging import reconciliation
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.settings import variable

_LEAST_SECONDS = 30  # enough for one more record, even if all of its calls time out
_THREADS = 8  # records at the same time


@lambda_function
def handler(_: Any, invocation: Invocation) -> dict[str, int]:
    """Return how many records were open, and how many of them are settled now. The next run handles the rest.

    One run works at a time. Another one returns at once.
    """
    leases = Leases(variable("LEDGER_TABLE"), "resolve")
    lease = leases.take(invocation.deadline.remaining())
    if lease is None:
        return {"open": 0, "settled": 0}
    try:
        return _resolve_all(lease.turn, invocation.deadline)
    finally:
        with suppress(ServiceUnavailableError):  # the lease expires by itself
            leases.give_back(lease)


def _resolve_all(turn: int, deadline: Deadline) -> dict[str, int]:
    """Handle all open records, from another shard on at each turn, and return the counts."""
    ledger = IdempotencyStore(variable("LEDGER_TABLE"))
    ids = ledger.pending(turn)
    lock = threading.Lock()

    def work(_: int) -> list[bool]:
        settled: list[bool] = []
        while deadline.remaining() >= _LEAST_SECONDS:
            with lock:
                record_id = next(ids, None)
            if record_id is None:
                break
            if (is_settled := _resolve_record(ledger, record_id, deadline)) is not None:
                settled.append(is_settled)
        return settled

    with ThreadPoolExecutor(_THREADS, initializer=telemetry.resume, initargs=(telemetry.noted(),)) as pool:
        settled = [is_settled for each in pool.map(work, range(_THREADS)) for is_settled in each]
    return {"open": len(settled), "settled": sum(settled)}


def _resolve_record(ledger: IdempotencyStore, record_id: str, deadline: Deadline) -> bool | None:
    """Reconcile a record, and return whether it is settled; None if it was settled before."""
    try:
        with Invocation(deadline, send_id=record_id) as call:
            record = ledger.find(record_id)
            if record is None or record.settled:
                return None
            telemetry.note(connection=record.connection, caller=record.caller)
            if is_settled := reconciliation.reconcile(ledger, record, deadline):
                call.outcome = "settled"
            return is_settled
    except ConnectorError:  # the other records must not wait for it
        return False
