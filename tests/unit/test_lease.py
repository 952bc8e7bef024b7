"""The lease of a scheduled function: one run at a time has it."""

import pytest
from twilio_connector.aws.lease import Lease, Leases
from twilio_connector.errors import ServiceUnavailableError

from tests.aws_wire import LOST, PASS, AwsWire

pytestmark = pytest.mark.usefixtures("delays")
LEASES = Leases("ledger", "resolve")
DENIED = (400, "AccessDeniedException")


def test_one_has_it_until_it_is_given_back(aws_wire: AwsWire) -> None:
    """One run has the lease until it gives it back, and `turn` counts the runs."""
    turns = []
    for _ in range(3):
        lease = LEASES.take(60)
        assert lease is not None
        assert LEASES.take(60) is None
        LEASES.give_back(lease)
        turns.append(lease.turn)

    assert [0, 1, 2] == turns
    assert {"id", "turn", "revision", "lease_until"} == aws_wire.owners["resolve"].keys()


def test_it_ends_by_itself(aws_wire: AwsWire) -> None:
    """An expired lease can be taken, because its owner may have crashed. The old owner can no longer give it back."""
    first = LEASES.take(60)
    assert first is not None
    aws_wire.owners["resolve"]["lease_until"] = {"N": "1"}
    second = LEASES.take(60)
    assert second is not None
    LEASES.give_back(first)

    assert LEASES.take(60) is None


def test_of_two_at_once_one_has_it(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two runs take the lease at once, one gets it. The other one read it as free, and its write is refused."""
    answer = aws_wire.answer
    faster: list[Lease | None] = []

    def meanwhile(operation: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        if operation == "PutItem" and not faster:
            faster.append(None)
            faster[0] = LEASES.take(60)
        return answer(operation, body)

    monkeypatch.setattr(aws_wire, "answer", meanwhile)

    assert LEASES.take(60) is None
    assert [0] == [lease.turn for lease in faster if lease]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_write_whose_answer_was_lost_is_its_own(aws_wire: AwsWire, is_first: bool) -> None:  # noqa: FBT001 a table
    """A run has the lease even if the answer to its write was lost.

    Otherwise no run could start until the lease expires.
    """
    if not is_first:
        lease = LEASES.take(60)
        assert lease is not None
        LEASES.give_back(lease)
    aws_wire.failures["PutItem"] = [LOST, PASS]

    assert LEASES.take(60) is not None


@pytest.mark.parametrize("operation", ["GetItem", "PutItem"])
def test_a_table_that_does_not_answer_is_an_error(aws_wire: AwsWire, operation: str) -> None:
    """If DynamoDB refuses a call, `take` raises an error that can be retried."""
    aws_wire.failures[operation] = [DENIED]

    with pytest.raises(ServiceUnavailableError):
        LEASES.take(60)
