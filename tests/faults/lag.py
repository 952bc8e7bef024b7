"""DynamoDB indexes that lag behind their tables: reads of an index are always eventually consistent.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

type Item = dict[str, dict[str, Any]]
type Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
"""A function that calls an operation of DynamoDB without any faults."""

WRITES = frozenset({"PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"})


class _Image(NamedTuple):
    at: float
    item: Item | None


class Lag:
    """The writes to tables that were empty at the start, and the answers that their lagging indexes give.

    For past items, it evaluates only the partition key of a query's conditions and ignores the others.
    """

    def __init__(self, seconds: float) -> None:
        """Set the lag of all indexes."""
        self._seconds = seconds
        self._images: dict[tuple[str, str], list[_Image]] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.outdated = 0
        """The number of queries whose answers differed from the table's present data."""

    def wrote(self, operation: str, asked: Mapping[str, Any], ask: Ask) -> None:
        """Record a write that was carried out."""
        for table, key, item in self._written(operation, asked, ask):
            now = time.monotonic()
            with self._lock:
                images = self._images.setdefault((table, key), [_Image(float("-inf"), None)])
                images.append(_Image(now, item))
                settled = [image for image in images if image.at <= now - self._seconds]
                del images[: max(len(settled) - 1, 0)]

    def answer(self, asked: Mapping[str, Any], answer: dict[str, Any], ask: Ask) -> dict[str, Any]:
        """Return the answer that an index would have given to a query before the lag."""
        table = asked["TableName"]
        described = self._described(table, ask)
        index = next(each for each in described["GlobalSecondaryIndexes"] if each["IndexName"] == asked["IndexName"])
        moment = time.monotonic() - self._seconds
        with self._lock:
            before = {
                key: next(image.item for image in reversed(images) if image.at <= moment)
                for (name, key), images in self._images.items()
                if name == table and images[-1].at > moment
            }
        [partition] = _attributes(index, "HASH")
        values = asked.get("ExpressionAttributeValues", {}).values()
        kept = [item for item in answer["Items"] if _key(described, item) not in before]
        olds = [item for item in before.values() if item and partition in item and item[partition] in values]
        items = [*kept, *(_projected(described, index, item) for item in olds)]
        if sorted(map(_text, items)) == sorted(map(_text, answer["Items"])):
            return answer
        self.outdated += 1
        return answer | {"Items": items, "Count": len(items), "ScannedCount": len(items)}

    def _written(self, operation: str, asked: Mapping[str, Any], ask: Ask) -> Iterator[tuple[str, str, Item | None]]:
        """Yield table, key and item of each write; the item is None if it was deleted."""
        if operation == "TransactWriteItems":
            for each in asked["TransactItems"]:
                [(name, inner)] = each.items()
                if name != "ConditionCheck":
                    yield from self._written(f"{name}Item", inner, ask)
            return
        table = asked["TableName"]
        described = self._described(table, ask)
        if "GlobalSecondaryIndexes" not in described:
            return
        if operation == "PutItem":
            yield table, _key(described, asked["Item"]), asked["Item"]
            return
        found = ask("GetItem", {"TableName": table, "Key": asked["Key"], "ConsistentRead": True})
        yield table, _key(described, asked["Key"]), found.get("Item")

    def _described(self, table: str, ask: Ask) -> dict[str, Any]:
        if table not in self._tables:
            self._tables[table] = ask("DescribeTable", {"TableName": table})["Table"]
        return self._tables[table]


def _attributes(schema: Mapping[str, Any], *kinds: str) -> list[str]:
    return [each["AttributeName"] for each in schema["KeySchema"] if not kinds or each["KeyType"] in kinds]


def _key(table: Mapping[str, Any], item: Item) -> str:
    return json.dumps([item[name] for name in _attributes(table)])


def _projected(table: Mapping[str, Any], index: Mapping[str, Any], item: Item) -> Item:
    """Return the attributes of an item that an index has."""
    projection = index["Projection"]
    if projection["ProjectionType"] == "ALL":
        return item
    names = {*_attributes(table), *_attributes(index), *projection.get("NonKeyAttributes", [])}
    return {name: value for name, value in item.items() if name in names}


def _text(item: Item) -> str:
    return json.dumps(item, sort_keys=True)
