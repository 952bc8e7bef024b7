"""Publish what is new or changed in Twilio's list of messages, for accounts that cannot receive webhooks."""

import itertools
from collections import Counter
from contextlib import suppress
from typing import Any

from msgspec.structs import replace
from twilio_connector import telemetry
from twilio_connector.api.client import Twilio
from twilio_connector.aws import client
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import lambda_handler
from twilio_connector.polling import scan
from twilio_connector.polling.checkpoint import Checkpoint, OvertakenError, Progress
from twilio_connector.polling.scan import Account
from twilio_connector.publishing import publisher
from twilio_connector.publishing.deduplication import Deduplication
from twilio_connector.settings import variable
from twilio_connector.validation.model import Input, Moment

_CHUNK = 100  # messages that are looked up, and published, together
_RESERVE_SECONDS = publisher.RESERVE_SECONDS + 3 * client.SECONDS  # to publish, and to write the progress


class PollMessages(Input, frozen=True, kw_only=True):
    """The connection to poll, and the time at which its first run begins."""

    since: Moment | None = None


@lambda_handler(PollMessages)
def handler(wanted: PollMessages, twilio: Twilio, _: Caller) -> dict[str, Any]:
    """Return how many messages were `seen`, how many events `published`, and whether the scan is `complete`.

    If a run ends for lack of time or by an error, the next run continues there. A run does nothing while another one
    is at work.
    """
    twilio.reserve(_RESERVE_SECONDS)
    account = Account(twilio, twilio.connection.account_sid)
    if not account.has_time():
        raise ServiceUnavailableError("too little time was left to begin; raise the function's timeout")
    checkpoint = Checkpoint(twilio, account.sid)
    counts: Counter[str] = Counter(seen=0, published=0)
    complete = False
    with suppress(OvertakenError):
        if checkpoint.take(wanted.since):
            try:
                complete = _go_on(account, checkpoint, counts)
            finally:
                checkpoint.release()
    telemetry.note(**counts, complete=complete)
    return {**counts, "complete": complete}


def _go_on(account: Account, checkpoint: Checkpoint, counts: Counter[str]) -> bool:
    """Publish page after page while there is time; return whether the scan is complete."""
    while current := checkpoint.progress.current:
        if not account.has_time():
            return False
        page, current = scan.fetch_page(account, current)
        checkpoint.progress = replace(checkpoint.progress, current=current)
        if not _publish_page(page["messages"], account, checkpoint.progress, counts):
            return False
        checkpoint.write(scan.progress_after(page, account, checkpoint.progress))
    return True


def _publish_page(messages: list[dict[str, Any]], account: Account, progress: Progress, counts: Counter[str]) -> bool:
    """Publish the events that are due on a page; tell whether there was time for all."""
    table = Deduplication(variable("DELIVERIES_TABLE"))
    for chunk in itertools.batched(messages, _CHUNK, strict=False):
        if not account.has_time():
            return False
        unknown = table.unknown([event for message in chunk if (event := scan.due_event(message, account, progress))])
        whole = list(scan.with_media(unknown, account))
        publisher.publish(whole, account.twilio.deadline, can_wait=True)
        counts["seen"] += len(chunk)
        counts["published"] += len(whole)
        if len(whole) < len(unknown):
            return False
    return True
