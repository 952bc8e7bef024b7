"""Find out what became of messages whose outcome is unknown, and report those for which nobody waits."""

import time
from typing import Any

import msgspec
from twilio_connector import reports, sending, telemetry
from twilio_connector.client import Twilio
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectorError, OutcomeUnknownError, ServiceUnavailableError
from twilio_connector.ledger import Ledger, Overdue, Proven, Record, Reported, State
from twilio_connector.settings import variable

_LEAST_SECONDS = 30  # for one more record, whatever fails


def handler(event: Any, context: Any) -> dict[str, int]:  # noqa: ARG001 a schedule says nothing
    """Return how many records were open, and how many of them are settled now; the next run takes up the rest."""
    deadline = Deadline.of(context)
    ledger = Ledger(variable("LEDGER_TABLE"))
    counts = {"open": 0, "settled": 0}
    try:
        for record in ledger.unsettled():
            if deadline.remaining() < _LEAST_SECONDS:
                break
            counts["open"] += 1
            counts["settled"] += _settled(ledger, record, deadline)
    except ConnectorError as error:
        telemetry.failure(error, function=__name__)
        raise
    except Exception as error:  # noqa: BLE001 its message must not reach a log
        raise telemetry.bug(error) from None
    finally:
        telemetry.flush()
    return counts


def _settled(ledger: Ledger, record: Record, deadline: Deadline) -> bool:
    """Bring a record as far as it goes, and tell whether nobody has to be told any more."""
    try:
        return _settle(ledger, record, deadline)
    except ServiceUnavailableError as error:
        telemetry.failure(error, function=__name__, connection=record.connection)
    except Exception as error:  # noqa: BLE001 the other records must not wait for it
        telemetry.bug(error)
    return False


def _settle(ledger: Ledger, record: Record, deadline: Deadline) -> bool:
    if record.state is not State.UNKNOWN and record.lease_until > time.time():
        return False  # its sender may still answer
    known = _looked_for(ledger, record, Twilio(record.connection, deadline))
    if known is None or known.settled:
        return True
    if known.state is State.SENDING:
        return False  # somebody claimed it again
    if known.state is State.UNKNOWN:
        if known.claimed_at + 60 * int(variable("UNKNOWN_REPORT_AFTER")) > time.time():
            return False
        error = OutcomeUnknownError("neither a status callback nor Twilio's list shows the message")
        reports.unknown(reports.subject(known), msgspec.json.encode(known.sms).decode(), error.problem())
    elif known.message:
        reports.sent(reports.subject(known), known.message)
    ledger.write(Reported(known.state), known)
    return True


def _looked_for(ledger: Ledger, record: Record, twilio: Twilio) -> Record | None:
    """Return the record with what Twilio knows of its message."""
    now: Record | None = record
    if record.state is State.SENDING:
        now = ledger.write(Overdue(), record)
        telemetry.count("OutcomeUnknown")
    if now and now.state is State.UNKNOWN and (message := sending.find(twilio, ledger, now)):
        now = ledger.write(Proven(message), now)
    if now and now.message:
        now = msgspec.structs.replace(now, message=sending.whole(twilio, now.message))
    return now
