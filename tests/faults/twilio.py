"""The normal answers of Twilio's Messages resource, and a message history that is read in pages."""

import itertools
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import cache
from typing import Any, Literal
from urllib.parse import urlencode

from .wire import Reply, Request

type Message = dict[str, Any]
type Evil = Literal[
    "foreign_host",
    "other_account",
    "self_loop",
    "two_page_loop",
    "repeated_page",
    "repeated_message",
    "empty_pages",
]

NEWEST = datetime(2026, 1, 31, 12, tzinfo=UTC)
"""The time at which the newest message of a history was sent."""
_CREATED = format_datetime(NEWEST)

OTHER_ACCOUNT = "AC" + "f" * 32
RECIPIENTS = [f"+1555010{number:04}" for number in range(4)]
SENDERS = ["+15005550006", "+15551234567"]

_RESOURCE = re.compile(r"/2010-04-01/Accounts/([^/.]+)/Messages(?:/([^/.]+))?(?:\.json)?")
_MEDIA = re.compile(r"/2010-04-01/Accounts/([^/.]+)/Messages/([^/.]+)/Media\.json")


class Account:
    """A minimal Twilio account: it accepts every message and finds every SID."""

    def __init__(self) -> None:
        self.history = History(0)
        self.first: Callable[[Request], Reply | None] = lambda _: None
        """A function that can answer a request before the account does; None leaves it to the account."""
        self._sids = itertools.count(1)

    def reply(self, request: Request) -> Reply:
        """Return the normal answer (201, 200 or 204); for other resources, it repeats the method and the URL."""
        return self.first(request) or self._about_media(request) or self._about_messages(request)

    def _about_media(self, request: Request) -> Reply | None:
        match = _MEDIA.fullmatch(request.path)
        if match is None or match[2] not in self.history.media or request.method == "DELETE":
            return None
        return Reply.json(200, {"media_list": _media_list(match[1], match[2], self.history.media[match[2]])})

    def _about_messages(self, request: Request) -> Reply:
        match = _RESOURCE.fullmatch(request.path)
        if request.method == "DELETE":
            return Reply(204)
        if not match:
            return Reply.json(200, {"method": request.method, "uri": request.target})
        account, sid = match.groups()
        if sid:
            return Reply.json(200, self.history.find(sid) or message(account, sid))
        if request.method != "POST":
            return self.history.page(request)
        form = {name: values[0] for name, values in request.form.items()}
        sid = f"{'MM' if 'MediaUrl' in form else 'SM'}{next(self._sids):032x}"
        return Reply.json(201, message(account, sid, form))


class History:
    """Messages, newest first, in pages as Twilio returns them, or in pages with an attacker's links.

    `add`, `update` and `remove` change the history, also between two pages: `before_page` is called before each page.
    `media` has the content types of each message's media, by SID.
    """

    def __init__(
        self,
        count: int,
        *,
        max_page_size: int = 1000,
        spacing: timedelta = timedelta(minutes=1),
        body: str = "Hello",
        evil: Evil | None = None,
        elsewhere: str = "https://elsewhere.example",
    ) -> None:
        self._messages = [_sent(number, NEWEST - number * spacing, body) for number in range(count)]
        self._max_page_size = max_page_size
        self._evil = evil
        self._elsewhere = elsewhere
        self._added = itertools.count(1)
        self.before_page: Callable[[], object] = lambda: None
        self.media: dict[str, Sequence[str]] = {}

    def add(self, sent: datetime | None, *, media: Sequence[str] = (), **fields: Any) -> str:
        """Add a message and return its SID; `sent` is its sending and update time, or None if it is not sent yet."""
        sid = f"{'MM' if media else 'SM'}{'a' * 8}{next(self._added):024x}"
        created = format_datetime(sent or NEWEST)
        fields = {
            "status": "sent" if sent else "queued",
            "num_media": str(len(media)),
            "date_updated": created,
        } | fields
        added = message("AC" + "0" * 32, sid) | {"date_created": created, "date_sent": sent and created} | fields
        self._messages.append(added)
        self.media |= {sid: media} if media else {}
        self._sort()
        return sid

    def update(self, sid: str, at: datetime, *, sent: datetime | None = None, **fields: Any) -> None:
        """Change a message, with `at` as its update time; `sent` sets its sending time afterwards."""
        changes = (
            fields | {"date_updated": format_datetime(at)} | ({"date_sent": format_datetime(sent)} if sent else {})
        )
        self._messages = [each | changes if each["sid"] == sid else each for each in self._messages]
        self._sort()

    def remove(self, sid: str) -> None:
        """Delete a message."""
        self._messages = [each for each in self._messages if each["sid"] != sid]

    def _sort(self) -> None:
        """Sort the messages in Twilio's order; messages that are not sent yet come first."""
        self._messages.sort(key=lambda each: _moment(each["date_sent"] or format_datetime(_NEVER)), reverse=True)

    @property
    def sids(self) -> list[str]:
        """The SIDs of all messages, newest first."""
        return [each["sid"] for each in self._messages]

    def find(self, sid: str) -> Message | None:
        """Return the message with a SID, or None."""
        return next((each for each in self._messages if each["sid"] == sid), None)

    def page(self, request: Request) -> Reply:
        """Return the page that a request asks for."""
        self.before_page()
        wanted = {name: values[0] for name, values in request.parameters.items()}
        account = request.path.split("/")[3]
        number = int(wanted.get("Page", 0))
        size = min(int(wanted.get("PageSize", 50)), self._max_page_size)
        found = [each for each in self._messages if _matches(each, wanted)]
        start = number * size
        if token := wanted.get("PageToken"):
            known = [each["sid"] for each in found]
            if token[2:] not in known:
                return Reply.json(400, {"code": 21481, "message": "Invalid page token", "status": 400})
            start = known.index(token[2:]) + 1
        if self._evil == "repeated_page":
            start = 0
        if self._evil == "repeated_message":
            start = max(start - 1, 0) if number else 0
        rows = [] if self._evil == "empty_pages" else found[start : start + size]
        rows = [each | _owner(account, each["sid"]) for each in rows]
        last = (rows or found or [{"sid": "SM" + "0" * 32}])[-1]["sid"]
        following = wanted | {"PageSize": str(size), "Page": str(number + 1), "PageToken": f"PA{last}"}
        next_page = f"{request.path}?{urlencode(following)}"
        has_more = start + size < len(found) or self._evil not in {None, "repeated_message"}
        return Reply.json(200, {
            "messages": rows,
            "page": number,
            "page_size": size,
            "start": start,
            "end": start + len(rows) - 1,
            "uri": request.target,
            "first_page_uri": f"{request.path}?PageSize={size}&Page=0",
            "previous_page_uri": None,
            "next_page_uri": self._corrupt(next_page, request, wanted) if has_more else None,
        })  # fmt: skip

    def _corrupt(self, next_page: str, request: Request, wanted: dict[str, str]) -> str:
        """Return the URI of the next page, or the one that an attacker would return instead."""
        account = request.path.split("/")[3]
        first_page = urlencode({name: wanted[name] for name in wanted if not name.startswith("PageT")} | {"Page": "0"})
        corruptions: dict[Evil | None, Callable[[], str]] = {
            "foreign_host": lambda: self._elsewhere + next_page,
            "other_account": lambda: next_page.replace(account, OTHER_ACCOUNT),
            "self_loop": lambda: request.target,
            "two_page_loop": lambda: f"{request.path}?{first_page}" if "PageToken" in wanted else next_page,
        }
        return corruptions.get(self._evil, lambda: next_page)()


def message(account: str, sid: str, form: dict[str, str] | None = None) -> Message:
    """Return the message object that Twilio creates from the form of a request."""
    form = form or {"To": RECIPIENTS[0], "From": SENDERS[0], "Body": "Hello"}
    service = form.get("MessagingServiceSid")
    return {
        **_owner(account, sid),
        "api_version": "2010-04-01",
        "body": form.get("Body", ""),
        "date_created": _CREATED,
        "date_sent": None,
        "date_updated": _CREATED,
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": form.get("From"),
        "messaging_service_sid": service,
        "num_media": "0",
        "num_segments": "0" if service else "1",
        "price": None,
        "price_unit": "USD",
        "sid": sid,
        "status": "accepted" if service else "queued",
        "to": form.get("To"),
    }


def _sent(number: int, sent: datetime, body: str) -> Message:
    """Return one sent message of a history; recipients and senders alternate by number."""
    sid = f"{'SM' if number % 10 else 'MM'}{number:032x}"
    form = {
        "To": RECIPIENTS[number % len(RECIPIENTS)],
        "From": SENDERS[number // len(RECIPIENTS) % len(SENDERS)],
        "Body": body,
    }
    return message("AC" + "0" * 32, sid, form) | {"status": "delivered", "date_sent": format_datetime(sent)}


def _owner(account: str, sid: str) -> Message:
    """Return the fields of a message that contain the account SID."""
    path = f"/2010-04-01/Accounts/{account}/Messages/{sid}"
    return {"account_sid": account, "subresource_uris": {"media": f"{path}/Media.json"}, "uri": f"{path}.json"}


def _matches(each: Message, wanted: dict[str, str]) -> bool:
    """Return whether a message passes the filters; dates are days in UTC, and all filters are inclusive.

    A message without a date passes no date filter.
    """
    if each["date_sent"] is None:
        return not wanted.keys() & _DATE_FILTERS.keys() and _matches(
            each | {"date_sent": format_datetime(_NEVER)}, wanted
        )
    sent = _moment(each["date_sent"])
    return (
        wanted.get("To", each["to"]) == each["to"]
        and wanted.get("From", each["from"]) == each["from"]
        and all(holds(*_comparable(sent, wanted[name])) for name, holds in _DATE_FILTERS.items() if name in wanted)
    )


_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
_moment = cache(parsedate_to_datetime)
_bound = cache(datetime.fromisoformat)


def _media_list(account: str, message_sid: str, media: Sequence[str]) -> list[Message]:
    """Return media objects as Twilio returns them."""
    url = f"/2010-04-01/Accounts/{account}/Messages/{message_sid}/Media"
    return [
        {
            "sid": (sid := f"ME{message_sid[2:28]}{number:06x}"),
            "account_sid": account,
            "parent_sid": message_sid,
            "content_type": content_type,
            "uri": f"{url}/{sid}.json",
        }
        for number, content_type in enumerate(media)
    ]


_DATE_FILTERS: dict[str, Callable[[date, date], bool]] = {
    "DateSent": lambda sent, bound: sent == bound,
    "DateSent<": lambda sent, bound: sent <= bound,
    "DateSent>": lambda sent, bound: sent >= bound,
}


def _comparable(sent: datetime, bound: str) -> tuple[date, date]:
    """Return two days or two times: a filter can have either."""
    moment = _bound(bound)
    if len(bound) == len("2026-01-31"):
        return sent.date(), moment.date()
    return sent, moment.replace(tzinfo=moment.tzinfo or UTC)
