"""A lease, so that one run of a scheduled function works at a time: an item of the ledger's table."""

import uuid
from contextlib import suppress
from typing import NamedTuple

from twilio_connector import clock
from twilio_connector.aws.dynamodb import ConditionFailedError, Table, attributes


class Lease(NamedTuple):
    """The right to run until it is given back or expires; `turn` counts the runs before this one."""

    turn: int
    revision: str


class Leases:
    """The lease of one function, whose name is the item's id."""

    def __init__(self, table: str, name: str) -> None:
        """Take the table's name and the function's."""
        self._table = Table(table, "the ledger of sent messages")
        self._name = name

    def take(self, seconds: float) -> Lease | None:
        """Return the lease for this many seconds, or None if another run has it; raises ServiceUnavailableError."""
        item = self._table.get(self._name)
        if item and int(item["lease_until"]["N"]) > clock.now():
            return None
        lease = Lease(int(item["turn"]["N"]) + 1 if item else 0, uuid.uuid4().hex)
        try:
            self._put(lease, int(clock.now() + seconds) + 1, item["revision"]["S"] if item else None)
        except ConditionFailedError:  # another run was faster
            return None
        return lease

    def give_back(self, lease: Lease) -> None:
        """Let the next run begin at once; raises ServiceUnavailableError."""
        with suppress(ConditionFailedError):  # it expired, and another run has it
            self._put(lease, 0, lease.revision)

    def _put(self, lease: Lease, until: int, old_revision: str | None) -> None:
        item = attributes(id=self._name, **lease._asdict(), lease_until=until)
        self._table.put(item, self._table.unchanged(old_revision))
