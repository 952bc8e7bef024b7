"""Items of DynamoDB tables, and optimistic writes: on condition that no other writer changed the item."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from twilio_connector.aws import client
from twilio_connector.deadline import Deadline

type Item = dict[str, dict[str, Any]]
"""An item as DynamoDB writes it: `{"id": {"S": "..."}}`."""
type Condition = Mapping[str, Any]
"""The parameters of a write that hold its condition."""

ALWAYS: Condition = MappingProxyType({})
"""No condition: the write replaces any item."""
_ABSENT: Condition = {"ConditionExpression": "attribute_not_exists(id)"}

_NOT_WRITTEN = frozenset({"ConditionalCheckFailedException", "TransactionCanceledException"})


class ConditionFailedError(client.AwsError):
    """Nothing was written: a condition failed, or the transaction conflicts with another writer."""

    @property
    def item(self) -> Item | None:
        """The existing item, if the answer has it."""
        return self.answer.get("Item")


class Table(NamedTuple):
    """A table whose key is `id`. Its calls raise ServiceUnavailableError, which names the table by `title`.

    `version` is the attribute that each write of an item sets to a new value. All calls end by the `deadline`.
    """

    name: str
    title: str
    version: str = "revision"
    deadline: Deadline | None = None

    def get(self, item_id: str) -> Item | None:
        """Return an item by a consistent read, or None if it does not exist."""
        answer = self.call("GetItem", TableName=self.name, Key={"id": {"S": item_id}}, ConsistentRead=True)
        return answer.get("Item")

    def put(self, item: Item, condition: Condition = ALWAYS) -> None:
        """Write an item; raises ConditionFailedError with the existing item.

        A call without an answer is retried, and may then find the item that its first attempt wrote. So an existing
        item with the version of this write is a success.
        """
        tell = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"} if condition else {}
        try:
            self.call("PutItem", TableName=self.name, Item=item, **condition, **tell)
        except ConditionFailedError as error:
            if not error.item or self.version not in item or error.item.get(self.version) != item[self.version]:
                raise

    def unchanged(self, version: str | None) -> Condition:
        """Return the condition that the item still has this version, or does not exist if that is None."""
        if version is None:
            return _ABSENT
        return condition(f"{self.version} = :{self.version}", **{self.version: version})

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation, whose parameters must name the table; raises ConditionFailedError if a condition fails."""
        seconds = self.deadline.remaining() if self.deadline else math.inf
        try:
            return client.call("dynamodb", operation, seconds=seconds, **parameters)
        except client.AwsError as error:
            if error.code in _NOT_WRITTEN:
                raise ConditionFailedError(error.code, error.answer) from None
            raise error.unavailable(self.title) from None


def attributes(**values: str | int | None) -> Item:
    """Return these values as an item's attributes, without those that are None."""
    return {
        name: {"S": value}
        if isinstance(value, str)
        else {"BOOL": value}
        if isinstance(value, bool)
        else {"N": str(value)}
        for name, value in values.items()
        if value is not None
    }


def condition(expression: str, **values: str | int) -> Condition:
    """Return a condition, in whose expression `:name` stands for the value of that name."""
    named = attributes(**{f":{name}": value for name, value in values.items()})
    return {"ConditionExpression": expression, "ExpressionAttributeValues": named}
