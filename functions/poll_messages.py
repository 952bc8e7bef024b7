"""Publish what is new or changed in Twilio's list of messages, for accounts that cannot receive webhooks.

A run goes through the list, newest first, from where the run before it stopped. Once it comes to the end, the next
one begins at the front again, and goes back to a while before the moment at which this one began:

    the list by date_sent  ──────────────────────┬──────────────────────┬─────────────────┬────► now
                                              since                 watermark           until
    this pass                                    └──────── OVERLAP ─────┴─────────────────┘
    the pass before it     ─────────────────────────────────────────────┘

What a pass cannot see: a message without `date_sent` (it is not sent yet, or was canceled), a status that was
followed by another between two passes, and one that comes more than OVERLAP_SECONDS after the message was sent.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace
from twilio_connector import aws, outbox, telemetry, twilio_events
from twilio_connector.client import API_PATH, Message, Twilio
from twilio_connector.deduplication import KEPT_SECONDS, Deduplication
from twilio_connector.entrypoint import entrypoint
from twilio_connector.errors import (
    InternalError,
    ServiceUnavailableError,
    TwilioNotFoundError,
    TwilioRejectedError,
    TwilioUnavailableError,
)
from twilio_connector.inputs import Input, Moment
from twilio_connector.settings import variable
from twilio_connector.twilio_events import Event, Origin

_HOUR = 3600

REMEMBERED_SECONDS = KEPT_SECONDS - _HOUR
"""A message that was sent no longer ago is known if it was published: that was not before it was sent, by any clock
that is less than an hour wrong."""
OVERLAP_SECONDS = REMEMBERED_SECONDS - 5 * _HOUR
"""So long after it was sent a message's status is looked at. What is left of REMEMBERED_SECONDS may lie between the
beginnings of two passes before something can be forgotten while it is still looked at."""
SETTLING_SECONDS = 30
"""What changed later before a pass began is left to the next one: Twilio's list may be behind, media may still come,
and a webhook, which has 15 s, knows more of the message."""
OLDEST_SECONDS = 400 * 24 * _HOUR
"""Twilio's list goes back no further."""

_PAGE_SIZE = 1000
_MAX_PAGE_BYTES = 32 * 1024 * 1024  # 1,000 messages, each with a text of 1,600 characters written as escapes
_CHUNK = 100  # messages that are looked up, and published, together
_LEAST_SECONDS = 60  # for one more chunk, or one more message with media
_RESERVE_SECONDS = outbox.RESERVE_SECONDS + 3 * aws.SECONDS  # of them, to publish and to write how far it came


class PollMessages(Input, frozen=True, kw_only=True):
    """Whose messages, and for the very first run since when."""

    since: Moment | None = None


class Pass(Struct, frozen=True, kw_only=True):
    """One way through the list. Times are seconds since the epoch.

    It publishes messages that were sent since `since`, as they were before `until`. `page` and `page_token` are
    Twilio's names of the page where it goes on; `before` is a bound of the filter from where it was begun again,
    `oldest` when the oldest message of the last page was sent. `pages` were done, the last at `moved_at`;
    `landmark` is the token of one of them.
    """

    since: int
    until: int
    moved_at: int
    page: str = ""
    page_token: str = ""
    before: int | None = None
    oldest: int | None = None
    pages: int = 0
    landmark: str = ""


class Progress(Struct, frozen=True, kw_only=True):
    """How far the polling of a connection came.

    `since` is where it began; all that was sent then or later, and had changed before `watermark`, is published.
    `lease_until` is when the run that is at work ends.
    """

    since: int
    watermark: int | None = None
    current: Pass | None = None
    lease_until: int = 0


class Account(NamedTuple):
    """The account whose messages are polled: the one of the beginning, also if the connection gets another."""

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
        return self.twilio.deadline.remaining() >= _LEAST_SECONDS


class Due(Enum):
    """Whether a message's status is published, if it is not known that it was."""

    NO = auto()
    YES = auto()
    UNCERTAIN = auto()
    """Yes, though it may have been published so long ago that nobody knows any more."""


@entrypoint(PollMessages)
def handler(wanted: PollMessages, twilio: Twilio) -> dict[str, Any]:
    """Return how many messages were `seen`, how many events `published`, and whether the pass is `complete`.

    The next run goes on where this one ended, for want of time or by an error. It does nothing while another run
    is at work.
    """
    twilio.reserve(_RESERVE_SECONDS)
    account = Account(twilio, twilio.connection.account_sid)
    if not account.has_time():
        raise ServiceUnavailableError("too little time was left to begin; the function needs more")
    bookmark = Bookmark(account)
    counts: Counter[str] = Counter(seen=0, published=0)
    complete = False
    with suppress(OvertakenError):
        if bookmark.take(wanted):
            try:
                complete = _go_on(account, bookmark, counts)
            finally:
                bookmark.release()
    return {**counts, "complete": complete}


def _go_on(account: Account, bookmark: "Bookmark", counts: Counter[str]) -> bool:
    """Publish page after page while there is time, and tell whether the last one was among them."""
    while current := bookmark.progress.current:
        if not account.has_time():
            return False
        page, current = _page(account, current)
        bookmark.progress = replace(bookmark.progress, current=current)
        if not _publish(page["messages"], account, bookmark.progress, counts):
            return False
        bookmark.write(_after(page, account, bookmark.progress))
    return True


def _publish(messages: list[dict[str, Any]], account: Account, progress: Progress, counts: Counter[str]) -> bool:
    """Publish what is due of a page, and tell whether the time sufficed."""
    table = Deduplication(variable("DELIVERIES_TABLE"))
    for chunk in itertools.batched(messages, _CHUNK, strict=False):
        if not account.has_time():
            return False
        unknown = table.unknown([event for message in chunk if (event := _event(message, account, progress))])
        whole = list(_with_media(unknown, account))
        outbox.publish(whole, account.twilio.deadline, can_wait=True)
        counts["seen"] += len(chunk)
        counts["published"] += len(whole)
        if len(whole) < len(unknown):
            return False
    return True


# Messages and their events


def _event(message: Mapping[str, Any], account: Account, progress: Progress) -> Event | None:
    """Return the event of a message that is due, without its media."""
    sent_at = _seconds(message.get("date_sent"))
    if sent_at is None:
        return None  # not sent yet; Twilio gives it a place in the list when it is
    due = judge(sent_at, _seconds(message.get("date_updated")) or sent_at, progress, time.time())
    if due is Due.NO:
        return None
    origin = Origin(account.twilio.name, account.sid, f"{account.url(message['sid'])}.json")
    event = twilio_events.of_message(origin, _about(message), message)
    return event if due is Due.YES else Event(event.detail_type, event.detail | {"deduplication": "uncertain"})


def judge(sent_at: float, updated_at: float, progress: Progress, now: float) -> Due:
    """Return whether the current pass is to publish a message that was sent and last changed at these times.

    Which events were published is known for a day only. What was sent earlier is told by the passes: one that came
    to its end published all that had changed before its `until`, which then became the `watermark`.
    """
    current, watermark = progress.current, progress.watermark
    if current is None or sent_at < current.since:
        return Due.NO  # Twilio may take a filter's date as a day
    if updated_at >= current.until and sent_at >= current.until - OVERLAP_SECONDS:
        return Due.NO  # the next pass takes it
    if sent_at >= now - REMEMBERED_SECONDS:
        return Due.YES
    if watermark is not None and sent_at < watermark:
        # A change may be of the price alone.
        return Due.NO if updated_at < watermark else Due.UNCERTAIN
    # A run that was ended in the middle of a page does not say how far it came.
    return Due.YES if current.moved_at >= now - REMEMBERED_SECONDS else Due.UNCERTAIN


def _about(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message in the words of the webhook's events."""
    error_code, num_media = message.get("error_code"), str(message.get("num_media"))
    return twilio_events.ranked({
        "sid": message["sid"],
        "from": message.get("from"),
        "to": message.get("to"),
        "body": message.get("body"),
        # A message to us is one event, as it is by the webhook: not another one while it is "receiving".
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


def _with_media(events: list[Event], account: Account) -> Iterator[Event]:
    """Yield the events while there is time, with the media of messages to us."""
    for event in events:
        about = event.detail["message"]
        if not about["num_media"] or about["status"] not in twilio_events.INBOUND:
            yield event
        elif not account.has_time():
            return
        else:
            about = about | {"media": _media(about["sid"], account)}
            yield Event(event.detail_type, event.detail | {"message": about})


def _media(message_sid: str, account: Account) -> list[dict[str, Any]]:
    """Return what Twilio has of a message's media; nothing where they were deleted."""
    try:
        answer = account.twilio.request("GET", f"{account.messages}/{message_sid}/Media.json", proof=_MediaList).data
    except (TwilioNotFoundError, TwilioRejectedError) as error:
        # It would be refused again, and the messages behind this one must not wait for it.
        telemetry.failure(error, function=__name__, connection=account.twilio.name, message_sid=message_sid)
        return []
    url = account.url(message_sid)
    return [
        {"url": f"{url}/Media/{each['sid']}", "content_type": each.get("content_type")} for each in answer["media_list"]
    ]


def _seconds(date: Any) -> float | None:
    """Return the moment that a date of Twilio's is (RFC 2822), None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


# Pages


class _Page(Struct):
    messages: list[Message]
    next_page_uri: str | None = None


def _page(account: Account, current: Pass) -> tuple[dict[str, Any], Pass]:
    """Return Twilio's page where a pass goes on, and the pass, begun again by date if Twilio refused the page."""
    try:
        return _asked(account, current), current
    except TwilioRejectedError as error:
        if not current.page_token or current.before == current.oldest:
            raise
        telemetry.failure(error, function=__name__, connection=account.twilio.name)
    again = replace(current, page="", page_token="", before=current.oldest, pages=0, landmark="")
    return _asked(account, again), again


def _asked(account: Account, current: Pass) -> dict[str, Any]:
    query = {"DateSent>": _iso(current.since), "PageSize": str(_PAGE_SIZE)}
    query |= {"DateSent<": _iso(current.before)} if current.before is not None else {}
    query |= {"Page": current.page} if current.page else {}
    query |= {"PageToken": current.page_token} if current.page_token else {}
    page: dict[str, Any] = account.twilio.request(
        "GET", f"{account.messages}.json", query=query, proof=_Page, max_bytes=_MAX_PAGE_BYTES
    ).data
    return page


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _after(page: dict[str, Any], account: Account, progress: Progress) -> Progress:
    """Return the progress once a page is published.

    Raises TwilioUnavailableError where the next page is another account's, or was done already.
    """
    current = progress.current
    if current is None:
        return progress
    dates = [sent_at for message in page["messages"] if (sent_at := _seconds(message.get("date_sent"))) is not None]
    uri = page.get("next_page_uri")
    if not uri or (dates and max(dates) < current.since):
        return replace(progress, current=None, watermark=current.until)
    path, _, query = uri.removeprefix(account.twilio.api_url).partition("?")
    if path != f"{API_PATH}{account.messages}.json":
        raise TwilioUnavailableError("Twilio's next page is not in the connection's account")
    names = dict(parse_qsl(query))
    token, pages = names.get("PageToken", ""), current.pages + 1
    # A circle of any length comes upon its landmark (R. P. Brent, "An improved Monte Carlo factorization algorithm").
    if token in {"", current.landmark}:
        raise TwilioUnavailableError("Twilio's next page is one that was read already")
    following = replace(
        current,
        page=names.get("Page", ""),
        page_token=token,
        oldest=int(min(dates)) if dates else current.oldest,
        pages=pages,
        landmark=token if pages.bit_count() == 1 else current.landmark,
        moved_at=int(time.time()),
    )
    return replace(progress, current=following)


# Progress


class OvertakenError(Exception):
    """Another run wrote how far it came."""


class Bookmark:
    """The progress of a connection, in the table of published events: an item that does not expire.

    Whoever writes must have read what is there, so that of two runs one stops.
    """

    progress: Progress

    def __init__(self, account: Account) -> None:
        """Take whose it is: where the connection gets another account, that begins anew."""
        self._deadline = account.twilio.deadline
        self._key = f"polling:{account.twilio.name}:{account.sid}"
        self._revision = ""

    def take(self, wanted: PollMessages) -> bool:
        """Begin a run, in the middle of a pass or with a new one; tell whether no other run is at work."""
        now = int(time.time())
        progress = self._read() or Progress(since=_first(wanted, now))
        if progress.lease_until > now:
            return False
        current = progress.current or _next(progress, now)
        self.write(replace(progress, current=current, lease_until=now + math.ceil(self._deadline.remaining())))
        return True

    def release(self) -> None:
        """Let the next run begin at once."""
        with suppress(ServiceUnavailableError, OvertakenError):  # the lease ends by itself
            self.write(replace(self.progress, lease_until=0))

    def write(self, progress: Progress) -> None:
        """Write how far the run came; raises OvertakenError or ServiceUnavailableError."""
        revision = uuid4().hex
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(id)"}
        if self._revision:
            values = {":revision": {"S": self._revision}}
            condition = {"ConditionExpression": "revision = :revision", "ExpressionAttributeValues": values}
        item = {
            "id": {"S": self._key},
            "revision": {"S": revision},
            "progress": {"S": msgspec.json.encode(progress).decode()},
        }
        try:
            _call("PutItem", Item=item, ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition)
        except OvertakenError as error:
            if error.args != (revision,):  # else the answer to our own write was lost
                raise
        self.progress, self._revision = progress, revision

    def _read(self) -> Progress | None:
        """Return what the table has."""
        item = _call("GetItem", Key={"id": {"S": self._key}}, ConsistentRead=True).get("Item")
        if not item:
            return None
        try:
            self._revision = item["revision"]["S"]
            return msgspec.json.decode(item["progress"]["S"], type=Progress)
        except (KeyError, TypeError, msgspec.MsgspecError):
            raise InternalError(
                "the item that says how far polling came is damaged; without it, it begins anew"
            ) from None


def _first(wanted: PollMessages, now: int) -> int:
    """Return where the very first pass begins: without `since` it brings no flood of old messages."""
    return int(datetime.fromisoformat(wanted.since).timestamp()) if wanted.since else now - OVERLAP_SECONDS


def _next(progress: Progress, now: int) -> Pass:
    """Return the pass that follows the last one."""
    since = max(progress.since, now - OLDEST_SECONDS)
    if progress.watermark is not None:
        since = max(since, progress.watermark - OVERLAP_SECONDS)
    return Pass(since=since, until=now - SETTLING_SECONDS, moved_at=now)


def _call(operation: str, **parameters: Any) -> dict[str, Any]:
    try:
        return aws.call("dynamodb", operation, TableName=variable("DELIVERIES_TABLE"), **parameters)
    except aws.RefusedError as error:
        if error.code == "ConditionalCheckFailedException":
            raise OvertakenError(error.answer.get("Item", {}).get("revision", {}).get("S")) from None
        raise ServiceUnavailableError(
            f"the table that says how far polling came does not answer ({error.code})"
        ) from None
