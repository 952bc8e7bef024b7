"""A scan of Twilio's list of messages, and the events that it publishes.

A scan reads the list, newest first, in as many runs as it takes: each continues where the last one stopped. The next
scan starts at the newest message again, and goes back to OVERLAP_SECONDS before this one's `until`:

    the list by date_sent  ──────────────────────┬──────────────────────┬─────────────────┬────► now
                                              since                 watermark           until
    this scan                                    └──────── OVERLAP ─────┴─────────────────┘
    the scan before it     ─────────────────────────────────────────────┘

A scan misses a message without `date_sent`, which is not sent yet or was canceled. It misses a status that another one
replaced between two scans, or that comes more than OVERLAP_SECONDS after the message was sent.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct
from msgspec.structs import replace

from twilio_connector import clock, telemetry
from twilio_connector.api.client import API_PATH, Twilio
from twilio_connector.api.pages import MessagePage, PageLink, TwilioList
from twilio_connector.errors import TwilioNotFoundError, TwilioRejectedError, TwilioUnavailableError
from twilio_connector.polling.checkpoint import OVERLAP_SECONDS, Progress, Scan
from twilio_connector.publishing.event import Event
from twilio_connector.webhooks import events as webhook_events
from twilio_connector.webhooks.events import Origin

REMEMBERED_SECONDS = 23 * 3600
"""Age in seconds up to which the table certainly has a sent message's published events. It keeps events for longer, but
earlier versions kept them for a day, and an hour is for wrong clocks."""

_CHUNK_SECONDS = 60  # for one more chunk, or one more message with media


class Account(NamedTuple):
    """The account whose messages are polled, also if the connection gets another one meanwhile."""

    twilio: Twilio
    sid: str

    @property
    def messages(self) -> str:
        """The path of its messages, below the API's version."""
        return f"/Accounts/{self.sid}/Messages"

    def url(self, message_sid: str) -> str:
        """Return a message's URL, without an ending."""
        return f"{self.twilio.api_url}{API_PATH}{self.messages}/{message_sid}"

    def has_time(self) -> bool:
        """Tell whether one more chunk can be begun."""
        return self.twilio.deadline.remaining() >= _CHUNK_SECONDS


class Due(Enum):
    """Whether a message's status is published, unless the table has it already."""

    NO = auto()
    YES = auto()
    UNCERTAIN = auto()
    """Yes, but it may have been published before the time that the table covers."""


# Messages and their events


def due_event(message: Mapping[str, Any], account: Account, progress: Progress) -> Event | None:
    """Return the event of a message that is due, without its media."""
    sent_at = _seconds(message.get("date_sent"))
    if sent_at is None:
        return None  # not sent yet; Twilio's list has a place for it once it is sent
    due = decide(sent_at, _seconds(message.get("date_updated")) or sent_at, progress, clock.now())
    if due is Due.NO:
        return None
    origin = Origin(account.twilio.name, account.sid, f"{account.url(message['sid'])}.json")
    event = webhook_events.of_message(origin, _about(message), message)
    return event if due is Due.YES else Event(event.detail_type, event.detail | {"deduplication": "uncertain"})


def decide(sent_at: float, updated_at: float, progress: Progress, now: float) -> Due:
    """Return whether the current scan publishes a message that was sent and last changed at these times.

    The table is complete for messages of the last day only. For older messages the scans decide: a finished scan
    published all changes before its `until`, which then became the `watermark`.
    """
    current, watermark = progress.current, progress.watermark
    if current is None or sent_at < current.since:
        return Due.NO  # Twilio may take a filter's date as a day
    if updated_at >= current.until and sent_at >= current.until - OVERLAP_SECONDS:
        return Due.NO  # the next scan takes it
    if sent_at >= now - REMEMBERED_SECONDS:
        return Due.YES
    if watermark is not None and sent_at < watermark:
        # A change may be of the price alone.
        return Due.NO if updated_at < watermark else Due.UNCERTAIN
    # A run that ended in the middle of a page did not record which of its messages it published.
    return Due.YES if current.moved_at >= now - REMEMBERED_SECONDS else Due.UNCERTAIN


def _about(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with the field names of the webhook's events."""
    error_code, num_media = message.get("error_code"), str(message.get("num_media"))
    return webhook_events.ranked({
        "sid": message["sid"],
        "from": message.get("from"),
        "to": message.get("to"),
        "body": message.get("body"),
        # An inbound message is one event, as by the webhook, also while its status is "receiving".
        "status": "received" if message.get("direction") == "inbound" else message.get("status"),
        "error_code": error_code if isinstance(error_code, int) else None,
        "opt_out_type": None,  # only the webhook has it
        "messaging_service_sid": message.get("messaging_service_sid"),
        "num_media": int(num_media) if num_media.isdecimal() else 0,
        "media": [],
    })  # fmt: skip


class _Medium(Struct):
    sid: Annotated[str, Meta(pattern=r"\AME[0-9a-fA-F]{32}\Z")]
    content_type: str | None = None


class _MediaList(Struct):
    media_list: list[_Medium]


def with_media(events: list[Event], account: Account) -> Iterator[Event]:
    """Yield the events while there is time, with the media of inbound messages."""
    for event in events:
        about = event.detail["message"]
        if not about["num_media"] or about["status"] not in webhook_events.INBOUND:
            yield event
        elif not account.has_time():
            return
        else:
            about = about | {"media": _fetch_media(about["sid"], account)}
            yield Event(event.detail_type, event.detail | {"message": about})


def _fetch_media(message_sid: str, account: Account) -> list[dict[str, Any]]:
    """Return the media of a message, or none if Twilio refuses the request."""
    try:
        answer = account.twilio.request(
            "GET", f"{account.messages}/{message_sid}/Media.json", response_model=_MediaList
        ).data
    except (TwilioNotFoundError, TwilioRejectedError) as error:
        # Twilio would refuse it again, and this must not stop the messages behind this one.
        telemetry.failure(error, message_sid=message_sid)
        return []
    url = account.url(message_sid)
    return [
        {"url": f"{url}/Media/{each['sid']}", "content_type": each.get("content_type")} for each in answer["media_list"]
    ]


def _seconds(date: Any) -> float | None:
    """Return Twilio's RFC 2822 date as seconds since the epoch, or None if it is not valid."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


# Pages


def fetch_page(account: Account, current: Scan) -> tuple[dict[str, Any], Scan]:
    """Return a scan's next page, and the scan. If Twilio refuses the page, the scan restarts by date."""
    try:
        return _fetch(account, current), current
    except TwilioRejectedError as error:
        if not current.page_token or current.before == current.oldest:
            raise
        telemetry.failure(error)
    again = replace(current, page="", page_token="", before=current.oldest, pages=0, landmark="")
    return _fetch(account, again), again


def _fetch(account: Account, current: Scan) -> dict[str, Any]:
    return _messages(account, current).fetch(PageLink(current.page, current.page_token))


def _messages(account: Account, current: Scan) -> TwilioList:
    """Return the list, filtered by the scan's dates."""
    filters = {"DateSent>": _iso(current.since)}
    filters |= {"DateSent<": _iso(current.before)} if current.before is not None else {}
    return TwilioList(account.twilio, f"{account.messages}.json", MessagePage, filters, "1000")


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def progress_after(page: dict[str, Any], account: Account, progress: Progress) -> Progress:
    """Return the progress once a page is published.

    Raises TwilioUnavailableError if the next page belongs to another account, or was read already.
    """
    current = progress.current
    if current is None:
        return progress
    dates = [sent_at for message in page["messages"] if (sent_at := _seconds(message.get("date_sent"))) is not None]
    is_past = bool(dates) and max(dates) < current.since
    link = None if is_past else _messages(account, current).link_after(page)
    if link is None:
        return replace(progress, current=None, watermark=current.until)
    pages = current.pages + 1
    # A circle of any length meets its landmark (R. P. Brent, "An improved Monte Carlo factorization algorithm").
    if link.token in {"", current.landmark}:
        raise TwilioUnavailableError("Twilio's next page was already read")
    following = replace(
        current,
        page=link.page,
        page_token=link.token,
        oldest=int(min(dates)) if dates else current.oldest,
        pages=pages,
        landmark=link.token if pages.bit_count() == 1 else current.landmark,
        moved_at=int(clock.now()),
    )
    return replace(progress, current=following)
