"""Find out whether a message with an unknown outcome was sent, and report it."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from twilio_connector import clock, telemetry
from twilio_connector.api.client import Message, Retries, Twilio
from twilio_connector.backoff import backoff
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectorError, OutcomeUnknownError
from twilio_connector.messaging import outcome_events, sender
from twilio_connector.messaging.idempotency import (
    LeaseExpired,
    Listed,
    MessageMatch,
    ReportSent,
    SendRecord,
    SendState,
)
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.settings import variable

# Both Twilio's list and the ledger's index lag. The list counts once both must have caught up.
_CAUGHT_UP = 15  # seconds
_CALLED_BACK = 120  # seconds: a status callback is proof, and arrives sooner

_PAGE_SIZE = 200  # messages, newest first
_MOST_MATCHES = 10  # whose owners are looked up
_SEARCHED_SECONDS = 3600  # for which a failed search is retried, as the queue retries a send
_ONCE = Retries(limit=0, when=lambda _: False, delay=backoff)


class _Page(msgspec.Struct):
    messages: list[dict[str, Any]]


def reconcile(ledger: IdempotencyStore, record: SendRecord, deadline: Deadline) -> bool:
    """Look for the message of a record, report what is known, and return whether the record is settled."""
    if record.state is not SendState.UNKNOWN and record.lease_until > clock.now():
        return False  # its sender may still answer
    twilio = Twilio(record.connection, deadline)
    known: SendRecord | None = record
    if record.state is SendState.SENDING:
        known = ledger.write(LeaseExpired(), record)
        telemetry.count("OutcomeUnknown")
    found = None
    if known and known.state is SendState.UNKNOWN and (found := find_sent_message(twilio, ledger, known)):
        known = ledger.write(found, known)
    if known:
        telemetry.note(state=known.state, evidence=known.evidence, message_sid=known.sid)
    if known is None or known.settled:
        return True
    if known.state is SendState.SENDING:
        return False  # somebody claimed it again
    if known.state is SendState.UNKNOWN:
        if not _report_is_due(known, searched=found is not None):
            return False
        error = OutcomeUnknownError("no status callback confirmed the message, and Twilio's list is not conclusive")
        body = msgspec.json.encode(known.sms).decode()
        outcome_events.unknown(outcome_events.subject(known), body, error.problem(), known.candidate_sid)
    elif message := sender.result(twilio, known):
        outcome_events.sent(outcome_events.subject(known), message)
    ledger.write(ReportSent(known.revision), known)
    return True


def _report_is_due(record: SendRecord, *, searched: bool) -> bool:
    """Tell whether to report an unknown outcome.

    It is due after `UnknownReportAfter`, but not before a search of Twilio's list. After an hour it is due without one.
    """
    waited = clock.now() - record.claimed_at
    if record.sought and not searched and waited < _SEARCHED_SECONDS:
        return False
    return waited >= 60 * int(variable("UNKNOWN_REPORT_AFTER"))


def searchable_at(record: SendRecord) -> float:
    """Return from when on Twilio's list is searched for a message whose outcome is unknown."""
    since = record.claimed_at if record.unknown_since is None else record.unknown_since
    return since + (_CALLED_BACK if record.calls_back else _CAUGHT_UP)


def find_sent_message(twilio: Twilio, ledger: IdempotencyStore, record: SendRecord) -> Listed | None:
    """Search Twilio's list for a record's message; None if it is too early or Twilio does not answer.

    A message matches if it has the text, recipient and sender, was made after the claim, and belongs to no other key.
    It is found if no other message matches. Raises ServiceUnavailableError if the ledger does not answer.
    """
    sought, now = record.sought, clock.now()
    if sought is None or now < searchable_at(record):
        return None
    query = {"To": sought.to, "PageSize": str(_PAGE_SIZE)} | ({"From": sought.from_} if sought.from_ else {})
    try:
        page = twilio.request("GET", "Messages.json", query=query, response_model=_Page, retries=_ONCE).data
    except ConnectorError:
        return None
    # Read after the list, so that the index shows the record of each message that is old enough.
    others = ledger.others(record)
    taken = {other.sid for other in others}
    like = [each for each in page["messages"] if _may_be(each, sought, record.claimed_at) and each["sid"] not in taken]
    if any(now - _created_at(each) < _CAUGHT_UP for each in like):
        return None  # the index may not show yet which key sent it
    if len(like) <= _MOST_MATCHES:
        like = [each for each in like if not ledger.is_taken(each["sid"], record)]
    is_whole = len(page["messages"]) < _PAGE_SIZE or _created_at(page["messages"][-1]) < record.claimed_at
    rival = any(other.state in {SendState.SENDING, SendState.UNKNOWN} for other in others)
    return Listed(like[0] if is_whole and len(like) == 1 else None, rival)


def _may_be(message: Mapping[str, Any], sought: MessageMatch, claimed_at: int) -> bool:
    """Tell whether a message of Twilio's list matches, and is not older than the claim."""
    try:
        msgspec.convert(message, Message)
    except msgspec.ValidationError:
        return False
    is_outbound = str(message.get("direction")).startswith("outbound")
    wanted = {name: value for name, value in msgspec.to_builtins(sought).items() if name != "account_sid"}
    is_like = is_outbound and all(message.get(name) == wanted[name] for name in wanted)
    return is_like and _created_at(message) >= claimed_at


def _created_at(message: Mapping[str, Any]) -> float:
    """Return when Twilio created a message; 0 if it has no valid date."""
    try:
        return parsedate_to_datetime(message["date_created"]).timestamp()
    except (KeyError, TypeError, ValueError, AttributeError):
        return 0.0
