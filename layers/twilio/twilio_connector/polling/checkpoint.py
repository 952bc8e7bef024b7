"""The progress of polling a connection, and the lease of the run at work."""

import math
from contextlib import suppress
from datetime import datetime
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from twilio_connector import clock
from twilio_connector.api.client import Twilio
from twilio_connector.aws.dynamodb import ConditionFailedError, Table, attributes
from twilio_connector.errors import InternalError, ServiceUnavailableError
from twilio_connector.settings import variable

OVERLAP_SECONDS = 18 * 3600
"""Seconds after a send for which changes of a message's status are published. Each scan reads these messages again."""
SETTLING_SECONDS = 30
"""Seconds before a scan's start whose changes are left to the next scan. Twilio's list may lag, media may still arrive,
and a webhook, which may take 15 s, has more of the message."""
OLDEST_SECONDS = 400 * 24 * 3600
"""Twilio's list goes back no further."""


class Scan(Struct, frozen=True, kw_only=True):
    """One pass through the list. Times are seconds since the epoch.

    It publishes messages that were sent since `since`, as they were before `until`. It continues at the page that
    Twilio names by `page` and `page_token`. `before` is the filter's upper bound, if the scan was restarted by date.
    The oldest message of the last page was sent at `oldest`. `pages` counts the finished pages, the last one at
    `moved_at`; `landmark` is the token of one of them.
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
    """The progress of polling a connection.

    Polling began with messages sent at `since`. All their changes before `watermark` are published. The run at work
    ends by `lease_until`.
    """

    since: int
    watermark: int | None = None
    current: Scan | None = None
    lease_until: int = 0


class OvertakenError(Exception):
    """Another run wrote its progress."""


class Checkpoint:
    """The progress of a connection, in the table of published events: an item that does not expire.

    A run replaces only a revision that it read or wrote itself. So if two runs overlap, one of them stops.
    """

    progress: Progress

    def __init__(self, twilio: Twilio, account_sid: str) -> None:
        """Take the client and the account. If a connection gets another account, polling starts over."""
        self._table = Table(variable("DELIVERIES_TABLE"), "the table with the progress of polling")
        self._deadline = twilio.deadline
        self._id = f"polling:{twilio.name}:{account_sid}"
        self._revision: str | None = None

    def take(self, since: str | None) -> bool:
        """Start a run, which continues a scan or starts a new one; False if another run is at work."""
        now = int(clock.now())
        progress = self._load() or Progress(since=_first_since(since, now))
        if progress.lease_until > now:
            return False
        current = progress.current or _next_scan(progress, now)
        self.write(replace(progress, current=current, lease_until=now + math.ceil(self._deadline.remaining())))
        return True

    def release(self) -> None:
        """Let the next run begin at once."""
        with suppress(ServiceUnavailableError, OvertakenError):  # the lease expires by itself
            self.write(replace(self.progress, lease_until=0))

    def write(self, progress: Progress) -> None:
        """Write the run's progress; raises OvertakenError or ServiceUnavailableError."""
        revision, text = uuid4().hex, msgspec.json.encode(progress).decode()
        try:
            self._table.put(
                attributes(id=self._id, revision=revision, progress=text), self._table.unchanged(self._revision)
            )
        except ConditionFailedError:
            raise OvertakenError from None
        self.progress, self._revision = progress, revision

    def _load(self) -> Progress | None:
        """Return the progress in the table, and keep its revision for the next write."""
        item = self._table.get(self._id)
        if not item:
            return None
        try:
            self._revision = item["revision"]["S"]
            return msgspec.json.decode(item["progress"]["S"], type=Progress)
        except (KeyError, TypeError, msgspec.MsgspecError):
            raise InternalError(
                "the item with the progress of polling is corrupt; delete it, and polling starts over"
            ) from None


def _first_since(since: str | None, now: int) -> int:
    """Return where the first scan begins. Without `since` it skips older messages, so that no flood of events comes."""
    return int(datetime.fromisoformat(since).timestamp()) if since else now - OVERLAP_SECONDS


def _next_scan(progress: Progress, now: int) -> Scan:
    """Return the scan that follows the last one."""
    since = max(progress.since, now - OLDEST_SECONDS)
    if progress.watermark is not None:
        since = max(since, progress.watermark - OVERLAP_SECONDS)
    return Scan(since=since, until=now - SETTLING_SECONDS, moved_at=now)
