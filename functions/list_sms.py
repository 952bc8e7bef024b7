"""List messages, filtered and page by page."""

import base64
import hashlib
from datetime import date
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct, field
from twilio_connector.client import API_PATH, Message, Twilio
from twilio_connector.entrypoint import MAX_ANSWER_BYTES, entrypoint
from twilio_connector.errors import Fault, InvalidInputError, TwilioUnavailableError
from twilio_connector.inputs import Input, Moment, Recipient, Sender

MAX_PAGE_BYTES = 32 * 1024 * 1024
"""Of one page: 1,000 messages, each with a text of 1,600 characters written as escapes."""
_MAX_BYTES = MAX_ANSWER_BYTES - 64 * 1024  # of all messages, as JSON in JSON
_SECONDS_PER_PAGE = 11.0  # a page is not begun with less; the answer then ends before it


class Day(Moment):
    """A day, or a moment in UTC."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Take an ISO date as it is."""
        try:
            return cls(msgspec.convert(value, date).isoformat())
        except msgspec.ValidationError:
            pass
        try:
            return super().parse(value)
        except ValueError:
            raise ValueError("must be an ISO 8601 date, or a date-time with offset") from None


PageSize = Annotated[int, Meta(ge=1, le=1000, description="must be a whole number from 1 to 1000")]
Limit = Annotated[int, Meta(ge=1, le=5000, description="must be a whole number from 1 to 5000")]


class Position(Struct, frozen=True, array_like=True):
    """Where a list goes on: a page as Twilio names it, and how many of its messages were given already.

    `after` is the last of these: in the first page, which has no token at Twilio, new messages move it.
    """

    filters: str
    page_size: str
    page: str = ""
    page_token: str = ""
    offset: int = 0
    after: str = ""


class ListSms(Input, frozen=True, kw_only=True):
    """Which messages (https://www.twilio.com/docs/messaging/api/message-resource#read-multiple-message-resources)."""

    to: Recipient | None = None
    from_: Sender | None = field(name="from", default=None)
    date_sent: Day | None = None
    date_sent_after: Day | None = None
    date_sent_before: Day | None = None
    page_size: PageSize | None = None
    limit: Limit = 1000
    page_token: str | None = None

    def filters(self) -> dict[str, str]:
        """Return Twilio's filters; the inequality is part of a parameter's name."""
        filters = {
            "To": self.to,
            "From": self.from_,
            "DateSent": self.date_sent,
            "DateSent>": self.date_sent_after,
            "DateSent<": self.date_sent_before,
        }
        return {name: str(value) for name, value in filters.items() if value is not None}

    def position(self, account_sid: str) -> Position:
        """Return where to begin; raises InvalidInputError where the token belongs to another list."""
        filters = msgspec.json.encode([account_sid, self.filters(), self.page_size])
        fingerprint = hashlib.sha256(filters).hexdigest()[:16]
        if self.page_token is None:
            return Position(fingerprint, str(self.page_size or min(self.limit, 1000)))
        try:
            position = msgspec.json.decode(base64.urlsafe_b64decode(self.page_token + "=="), type=Position)
        except (ValueError, msgspec.MsgspecError):
            raise InvalidInputError(Fault("page_token", "is not one that list_sms returned")) from None
        if position.filters != fingerprint or position.offset < 0:
            raise InvalidInputError(
                Fault("page_token", "belongs to other filters; give those, and the connection, of the call it is from")
            )
        return position


class Page(Struct):
    """What Twilio's answer has if it is a page of messages."""

    messages: list[Message]
    next_page_uri: str | None = None


@entrypoint(ListSms)
def handler(wanted: ListSms, twilio: Twilio) -> dict[str, Any]:
    """Return at most `limit` messages, and a token where there are more."""
    position: Position | None = wanted.position(twilio.connection.account_sid)
    visited: set[Position] = set()
    messages: list[dict[str, Any]] = []
    known: set[str] = set()
    size = 0
    while position and position not in visited:
        visited.add(position)
        page = _page(wanted, position, twilio)
        start = _start(page, position)
        rest = page["messages"][start:]
        before = len(known)
        for offset, message in enumerate(rest, start):
            if message["sid"] in known:
                continue
            size += _size(message)
            if len(messages) == wanted.limit or size > _MAX_BYTES:
                after = page["messages"][offset - 1]["sid"] if offset else ""
                return _answer(messages, msgspec.structs.replace(position, offset=offset, after=after))
            known.add(message["sid"])
            messages.append(message)
        # Pages that only repeat what was there would never end.
        repeats = bool(rest) and len(known) == before
        position = None if repeats else _next(page, position, twilio)
        if len(messages) == wanted.limit or not twilio.has_time(_SECONDS_PER_PAGE):
            return _answer(messages, position)
    return _answer(messages, None)


def _page(wanted: ListSms, position: Position, twilio: Twilio) -> dict[str, Any]:
    """Return Twilio's page at a position."""
    query = wanted.filters() | {"PageSize": position.page_size}
    query |= {"Page": position.page} if position.page else {}
    query |= {"PageToken": position.page_token} if position.page_token else {}
    page: dict[str, Any] = twilio.request(
        "GET", "Messages.json", query=query, proof=Page, max_bytes=MAX_PAGE_BYTES
    ).data
    return page


def _start(page: dict[str, Any], position: Position) -> int:
    """Return the index of the first message of a page that was not given yet."""
    sids = [message["sid"] for message in page["messages"]]
    return sids.index(position.after) + 1 if position.after in sids else position.offset


def _next(page: dict[str, Any], position: Position, twilio: Twilio) -> Position | None:
    """Return the position of the next page; raises TwilioUnavailableError where it is another account's."""
    uri = page.get("next_page_uri")
    if not uri:
        return None
    path, _, query = uri.removeprefix(twilio.api_url).partition("?")
    if path != f"{API_PATH}/Accounts/{twilio.connection.account_sid}/Messages.json":
        raise TwilioUnavailableError("Twilio's next page is not in the connection's account")
    names = dict(parse_qsl(query))
    return Position(position.filters, position.page_size, names.get("Page", ""), names.get("PageToken", ""))


def _size(message: dict[str, Any]) -> int:
    """Return the bytes a message takes as JSON in JSON, the form in which an API answer is longest."""
    return len(msgspec.json.encode(msgspec.json.encode(message).decode()))


def _answer(messages: list[dict[str, Any]], position: Position | None) -> dict[str, Any]:
    if position is None:
        return {"messages": messages, "next_page_token": None}
    # Without padding, which would have to be escaped in a query string.
    token = base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")
    return {"messages": messages, "next_page_token": token}
