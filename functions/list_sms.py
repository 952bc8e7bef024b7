"""List messages, filtered and page by page."""

import base64
import hashlib
from datetime import date
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, Struct, field
from twilio_connector.api.client import Twilio
from twilio_connector.api.pages import MessagePage, PageLink, TwilioList
from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import MAX_ANSWER_BYTES, lambda_handler
from twilio_connector.validation.model import Input, Moment, Recipient, Sender

_MAX_LIST_BYTES = MAX_ANSWER_BYTES - 64 * 1024  # of all messages together, as JSON in JSON
_SECONDS_PER_PAGE = 11.0  # needed to read one more page; with less, the answer ends


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
    """Where a list continues: a page as Twilio names it, and how many of its messages were returned already.

    `after` is the last of these messages. Twilio's first page has no token, and new messages shift its content.
    """

    filters: str
    page_size: str
    page: str = ""
    page_token: str = ""
    offset: int = 0
    after: str = ""


class ListSms(Input, frozen=True, kw_only=True):
    """The filters of a list (https://www.twilio.com/docs/messaging/api/message-resource#read-multiple-message-resources)."""

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
        """Return where to begin; raises InvalidInputError if the token belongs to another list."""
        filters = msgspec.json.encode([account_sid, self.filters(), self.page_size])
        fingerprint = hashlib.sha256(filters).hexdigest()[:16]
        if self.page_token is None:
            return Position(fingerprint, str(self.page_size or min(self.limit, 1000)))
        try:
            position = msgspec.json.decode(base64.urlsafe_b64decode(self.page_token + "=="), type=Position)
        except (ValueError, msgspec.MsgspecError):
            raise InvalidInputError(Fault("page_token", "was not returned by list_sms")) from None
        if position.filters != fingerprint or position.offset < 0:
            raise InvalidInputError(
                Fault("page_token", "belongs to other filters; use those of the call that returned it")
            )
        return position


@lambda_handler(ListSms)
def handler(wanted: ListSms, twilio: Twilio, _: Caller) -> dict[str, Any]:
    """Return at most `limit` messages, and a token if there are more."""
    start = wanted.position(twilio.connection.account_sid)
    listed = TwilioList(twilio, "Messages.json", MessagePage, wanted.filters(), start.page_size)
    position: Position | None = start
    visited: set[Position] = set()
    messages: list[dict[str, Any]] = []
    known: set[str] = set()
    size = 0
    while position and position not in visited:
        visited.add(position)
        page = listed.fetch(PageLink(position.page, position.page_token))
        first = _first_new(page, position)
        rest = page["messages"][first:]
        before = len(known)
        for offset, message in enumerate(rest, first):
            if message["sid"] in known:
                continue
            size += _size(message)
            if len(messages) == wanted.limit or size > _MAX_LIST_BYTES:
                after = page["messages"][offset - 1]["sid"] if offset else ""
                return _list_answer(messages, msgspec.structs.replace(position, offset=offset, after=after))
            known.add(message["sid"])
            messages.append(message)
        # Pages that only repeat earlier messages would never end.
        repeats = bool(rest) and len(known) == before
        link = None if repeats else listed.link_after(page)
        position = Position(position.filters, position.page_size, *link) if link else None
        if len(messages) == wanted.limit or not twilio.has_time(_SECONDS_PER_PAGE):
            return _list_answer(messages, position)
    return _list_answer(messages, None)


def _first_new(page: dict[str, Any], position: Position) -> int:
    """Return the index of a page's first message that was not returned yet."""
    sids = [message["sid"] for message in page["messages"]]
    return sids.index(position.after) + 1 if position.after in sids else position.offset


def _size(message: dict[str, Any]) -> int:
    """Return the bytes a message takes as JSON in JSON, the form in which an API answer is longest."""
    return len(msgspec.json.encode(msgspec.json.encode(message).decode()))


def _list_answer(messages: list[dict[str, Any]], position: Position | None) -> dict[str, Any]:
    if position is None:
        return {"messages": messages, "next_page_token": None}
    # Without padding, which would have to be escaped in a query string.
    token = base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")
    return {"messages": messages, "next_page_token": token}
