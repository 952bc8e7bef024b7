"""Who called a function."""

from typing import NamedTuple


class Caller(NamedTuple):
    """The original caller. `kind` is `api`, `direct`, `sqs`, `sns` or `eventbridge`, taken from the innermost envelope.

    `delivery` is the id of the innermost envelope. It stays the same when the event is delivered again.
    `may_have_been_sent`: an earlier invocation may have carried out the request.
    """

    kind: str
    delivery: str | None = None
    may_have_been_sent: bool = False
