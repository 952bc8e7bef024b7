"""A server for AWS's JSON protocol on loopback: it has the operations that the functions call, and injects faults."""

import json
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from tests import aws_models
from tests.faults.listener import Listener
from tests.faults.wire import Reader, Request

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKED: Counter[str] = Counter()
"""The number of calls that were checked against AWS's service models, by operation."""
LOST = (0, "lost")
PASS = (200, "")

FIRST = "first-version-" + "0" * 32
"""The id of a rotated secret's first version; AWS requires at least 32 characters."""

_PROJECTED: dict[str, set[str]] = {"unsettled-index": set(), "content-index": {"state", "sid"}}


class AwsWire(Listener):
    """Secrets, tables, queues and a bus behind `AWS_ENDPOINT_URL`; `calls` has each operation with its parameters.

    `failures[operation]` is a list of `(status, code)` that the next calls get instead of an answer. `LOST` carries
    the call out and loses its answer. `PASS` answers the call normally.
    """

    def __init__(self) -> None:
        """Reserve a free port."""
        super().__init__()
        self.secrets: dict[str, str | bytes] = {}
        """The current versions of the secrets, by name."""
        self.previous: dict[str, str] = {}
        """The previous versions of the secrets, by name."""
        self.secret_age = 30 * 24 * 3600.0
        """The seconds since the current versions were stored."""
        self.rotated: dict[str, RotatedSecret] = {}
        """The secrets with all their versions, by ARN."""
        self.items: dict[str, dict[str, Any]] = {}
        """The ledger's records, by id."""
        self.owners: dict[str, dict[str, Any]] = {}
        """The ledger's other items: the owners of SIDs, and the lease of `resolve`."""
        self.deliveries: dict[str, dict[str, Any]] = {}
        """The items of the published events, by id."""
        self.unprocessed: list[int] = []
        """The numbers of keys, from the end, that the next calls of BatchGetItem leave unprocessed."""
        self.parameters: dict[str, str] = {}
        """The parameters of Systems Manager, by name."""
        self.queues: dict[str, list[dict[str, Any]]] = {}
        """The records of the queues that store sent messages, by URL; a record is received if it is `Visible`."""
        self.function: Callable[[Any], tuple[dict[str, str], bytes]] = lambda _: ({}, b"null")
        """The invoked Lambda function: it gets the payload, and returns headers and body of the answer."""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failures: dict[str, list[tuple[int, str]]] = {}
        self.refused: list[int] = []
        """The numbers of entries, from the end, that the bus refuses in the next calls of PutEvents."""
        self.faults: list[str] = []
        """The errors in the calls, according to AWS's service models."""
        self.hangs: Callable[[str, int], bool] | None = None
        """A function that returns whether a call hangs until the end, by operation and number of earlier calls."""
        self._one_at_a_time = threading.Lock()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Start to serve."""
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Stop at once, even if calls hang; then check that all calls were valid."""
        super().__exit__(kind, *rest)
        if kind is None:
            assert [] == self.faults

    def _talk(self, sock: socket.socket, number: int) -> None:
        """Answer the calls on one connection, until the answer to one is lost."""
        reader = Reader(sock)
        while reader.wait():
            head, body, complete = reader.read()
            if not complete:
                return
            request = Request(number, 0, head=head)
            target = request.header("X-Amz-Target")
            headers: dict[str, str] = {}
            if target is not None:
                status, answer = self.answer(target.rpartition(".")[2], json.loads(body))
                data = json.dumps(answer).encode()
            else:  # Lambda's API has paths instead
                status, headers, data = self.invoke(request.target, json.loads(body))
            if status == LOST[0]:
                return
            own = {"Content-Type": "application/x-amz-json-1.1", "Content-Length": str(len(data))}
            lines = "".join(f"{name}: {value}\r\n" for name, value in (own | headers).items())
            sock.sendall(f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode("latin-1") + data)
            if headers.get("Connection") == "close":
                return

    def count(self, operation: str) -> int:
        """Return how often an operation was called."""
        return sum(called == operation for called, _ in self.calls)

    def age(self, seconds: float) -> None:
        """Make the ledger's keys older by this number of seconds."""
        for item in self.items.values():
            for name in item.keys() & {"claimed_at", "lease_until", "unknown_since"}:
                item[name] = {"N": str(int(item[name]["N"]) - int(seconds))}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All entries of all calls of PutEvents."""
        return [entry for called, body in self.calls if called == "PutEvents" for entry in body["Entries"]]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The parameters of all calls of SendMessage."""
        return [body for called, body in self.calls if called == "SendMessage"]

    def answer(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the answer to a call."""
        with self._one_at_a_time:
            hangs = self.hangs is not None and self.hangs(operation, self.count(operation))
            self._note(operation, body)
        if hangs:
            self._gate.wait(None)
        with self._one_at_a_time:
            failure = self.failures[operation].pop(0) if self.failures.get(operation) else PASS
            if failure not in {LOST, PASS}:
                return failure[0], {"__type": failure[1], "message": failure[1]}
            answer: tuple[int, dict[str, Any]] = getattr(self, f"_{operation}")(body)
            return (LOST[0], {}) if failure == LOST else answer

    def _note(self, operation: str, body: dict[str, Any]) -> None:
        self.calls.append((operation, body))
        parameters = body
        if operation == "Invoke":
            arn = unquote(body["path"]).removeprefix("/2015-03-31/functions/").removesuffix("/invocations")
            parameters = {"FunctionName": arn, "Payload": json.dumps(body["payload"]).encode()}
        self.faults += aws_models.faults(operation, parameters)
        CHECKED[operation] += 1

    def invoke(self, path: str, payload: Any) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of the answer to an invocation."""
        self._note("Invoke", {"path": path, "payload": payload})
        failure = self.failures["Invoke"].pop(0) if self.failures.get("Invoke") else PASS
        if failure != PASS:
            return failure[0], {"x-amzn-ErrorType": failure[1]}, b"{}"
        headers, body = self.function(payload)
        return 200, headers, body

    def _GetParameter(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        if body["Name"] not in self.parameters:
            return 400, {"__type": "ParameterNotFound", "message": "no such parameter"}
        return 200, {"Parameter": {"Name": body["Name"], "Value": self.parameters[body["Name"]]}}

    def _PutEvents(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        refused = self.refused.pop(0) if self.refused else 0
        results = [{"EventId": str(index)} for index in range(len(body["Entries"]) - refused)]
        results += [{"ErrorCode": "InternalFailure", "ErrorMessage": "injected"}] * refused
        return 200, {"FailedEntryCount": refused, "Entries": results}

    def _SendMessage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        message_id = str(len(self.sent))
        if body["QueueUrl"] in self.queues:
            record = {"MessageId": message_id, "Body": body["MessageBody"], "Visible": True}
            attributes = {"MessageAttributes": body["MessageAttributes"]} if body.get("MessageAttributes") else {}
            self.queues[body["QueueUrl"]].append(record | attributes)
        return 200, {"MessageId": message_id}

    def _ReceiveMessage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        """Return visible records; they are then invisible until `show` or a ChangeMessageVisibilityBatch."""
        found = [each for each in self.queues[body["QueueUrl"]] if each["Visible"]][: body["MaxNumberOfMessages"]]
        for each in found:
            each |= {"Visible": False, "ReceiptHandle": f"handle-{each['MessageId']}"}
        return 200, {"Messages": [{name: each[name] for name in each if name != "Visible"} for each in found]}

    def _DeleteMessage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        queue = self.queues[body["QueueUrl"]]
        queue[:] = [each for each in queue if each.get("ReceiptHandle") != body["ReceiptHandle"]]
        return 200, {}

    def _ChangeMessageVisibilityBatch(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS
        handles = {each["ReceiptHandle"] for each in body["Entries"]}
        for each in self.queues[body["QueueUrl"]]:
            each["Visible"] |= each.get("ReceiptHandle") in handles
        return 200, {"Successful": [{"Id": each["Id"]} for each in body["Entries"]], "Failed": []}

    def show(self, queue_url: str) -> None:
        """End the visibility timeout of all records of a queue."""
        for each in self.queues[queue_url]:
            each["Visible"] = True

    def _ChangeMessageVisibility(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: ARG002, N802 as AWS
        return 200, {}

    def _GetItem(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        if not body["Key"]["id"]["S"]:
            return 400, {"__type": "ValidationException", "message": "a key is never empty"}
        item = self._table(body["TableName"], body["Key"]["id"]["S"]).get(body["Key"]["id"]["S"])
        return 200, {"Item": item} if item else {}

    def _BatchGetItem(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        """Return items sorted by key, not in the request's order, because DynamoDB does not keep that order."""
        ((name, wanted),) = body["RequestItems"].items()
        keys = [key["id"]["S"] for key in wanted["Keys"]]
        if not 0 < len(keys) <= 100 or len(keys) != len(set(keys)):
            return 400, {"__type": "ValidationException", "message": "1 to 100 keys, each once"}
        done = len(keys) - (self.unprocessed.pop(0) if self.unprocessed else 0)
        left = {name: {"Keys": wanted["Keys"][done:]}} if done < len(keys) else {}
        items = self._table(name)
        found = [items[key] for key in sorted(keys[:done]) if key in items]
        return 200, {"Responses": {name: found}, "UnprocessedKeys": left}

    def _PutItem(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        items = self._table(body["TableName"], body["Item"]["id"]["S"])
        old = items.get(body["Item"]["id"]["S"])
        if not _holds(body, old):
            answer: dict[str, Any] = {"__type": "ConditionalCheckFailedException", "message": "as injected"}
            if old and body.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
                answer["Item"] = old
            return 400, answer
        items[body["Item"]["id"]["S"]] = body["Item"]
        return 200, {}

    def _TransactWriteItems(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        """Write all items or none: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html."""
        puts = [each["Put"] for each in body["TransactItems"]]
        places = [(put["TableName"], put["Item"]["id"]["S"]) for put in puts]
        if len(set(places)) != len(places):
            return 400, {"__type": "ValidationException", "message": "multiple operations on one item"}
        reasons = [
            {"Code": "None" if _holds(put, self._table(*place).get(place[1])) else "ConditionalCheckFailed"}
            for put, place in zip(puts, places, strict=True)
        ]
        if {"Code": "ConditionalCheckFailed"} in reasons:
            return 400, {"__type": "TransactionCanceledException", "CancellationReasons": reasons}
        for put, place in zip(puts, places, strict=True):
            self._table(*place)[place[1]] = put["Item"]
        return 200, {}

    def _table(self, name: str, item_id: str = "") -> dict[str, dict[str, Any]]:
        if name == "deliveries":
            return self.deliveries
        return self.owners if item_id.startswith(("SM", "MM")) or item_id == "resolve" else self.items

    def _Query(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        """Return one item per page, as a large table could, with only the attributes of the template's index."""
        name, value = body["ExpressionAttributeNames"]["#name"], body["ExpressionAttributeValues"][":value"]
        kept = {"id", name} | _PROJECTED[body["IndexName"]]
        found = sorted(item["id"]["S"] for item in self.items.values() if item.get(name) == value)
        start = body.get("ExclusiveStartKey", {}).get("id", {}).get("S", "")
        page = [key for key in found if key > start][:1]
        more = {"LastEvaluatedKey": {"id": {"S": page[-1]}}} if page and page[-1] != found[-1] else {}
        items = [{name: each for name, each in self.items[key].items() if name in kept} for key in page]
        return 200, {"Items": items, "Count": len(page), **more}

    def _GetSecretValue(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        if body["SecretId"] in self.rotated:
            return self.rotated[body["SecretId"]].get(body)
        stage = body.get("VersionStage", "AWSCURRENT")
        versions = self.secrets if stage == "AWSCURRENT" else self.previous
        return self._secret(body["SecretId"], versions.get(body["SecretId"]))

    def _DescribeSecret(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        secret = self.rotated.get(body["SecretId"])
        return secret.describe() if secret else _refused("ResourceNotFoundException")

    def _PutSecretValue(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS calls it
        return self.rotated[body["SecretId"]].put(body)

    def _UpdateSecretVersionStage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:  # noqa: N802 as AWS
        return self.rotated[body["SecretId"]].update_stage(body)

    def _secret(self, name: str, secret: str | bytes | None) -> tuple[int, dict[str, Any]]:
        if secret is None:
            return _refused("ResourceNotFoundException")
        answer = {"Name": name, "CreatedDate": time.time() - self.secret_age}
        if isinstance(secret, bytes):
            return 200, answer | {"SecretBinary": secret.decode("latin-1")}
        return 200, answer | {"SecretString": secret}


def _holds(body: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Return whether a request's condition holds; its parts can be joined with AND and OR."""
    names, values = body.get("ExpressionAttributeNames", {}), body.get("ExpressionAttributeValues", {})

    def part_holds(part: str) -> bool:
        if part == "attribute_not_exists(id)":
            return old is None
        name, comparison, value = part.split()
        given = (old or {}).get(names.get(name, name))
        match comparison:
            case "=":
                return given is not None and given == values[value]
            case "<=":
                return given is not None and int(given["N"]) <= int(values[value]["N"])
        raise NotImplementedError(part)

    condition = body.get("ConditionExpression")
    if condition is None:
        return True
    return any(all(part_holds(part) for part in either.split(" AND ")) for either in condition.split(" OR "))


class RotatedSecret:
    """A secret with versions and their labels, as Secrets Manager keeps them.

    https://docs.aws.amazon.com/secretsmanager/latest/userguide/whats-in-a-secret.html#term_version. `values` and
    `stages` are by version. While a rotation is in progress, its version can have labels without a value.
    """

    def __init__(self, name: str, value: str) -> None:
        """Create the secret with one version."""
        self.name = name
        self.arn = f"arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}-AbCdEf"
        self.rotation_enabled = True
        self.values = {FIRST: value}
        self.stages: dict[str, set[str]] = {FIRST: {"AWSCURRENT"}}
        self.takes_pending_off = False
        """Whether a version loses AWSPENDING when it gets AWSCURRENT; AWS documents both behaviours."""

    @property
    def current(self) -> str:
        """The value of the version that has the label AWSCURRENT."""
        return self.values[self.staged("AWSCURRENT") or ""]

    def staged(self, label: str) -> str | None:
        """Return the version that has a label, or None."""
        return next((version for version, labels in self.stages.items() if label in labels), None)

    def rotate(self, version: str) -> None:
        """Start a rotation, as RotateSecret does."""
        pending = self.staged("AWSPENDING")
        if pending not in {None, version, self.staged("AWSCURRENT")}:
            raise AssertionError("another rotation is under way")
        self._put_label("AWSPENDING", version)

    def write(self, version: str, value: str) -> None:
        """Store a version and make it the current one, as a person does."""
        self.values[version] = value
        self._put_label("AWSCURRENT", version)

    def describe(self) -> tuple[int, dict[str, Any]]:
        """Return the answer to DescribeSecret."""
        stages = {version: sorted(labels) for version, labels in self.stages.items() if labels}
        return 200, {
            "ARN": self.arn,
            "Name": self.name,
            "RotationEnabled": self.rotation_enabled,
            "VersionIdsToStages": stages,
        }

    def get(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the answer to GetSecretValue."""
        version = body.get("VersionId") or self.staged(body.get("VersionStage", "AWSCURRENT"))
        if version not in self.values:
            return _refused("ResourceNotFoundException")
        created = time.time() - 30 * 24 * 3600
        value = self.values[version]
        return 200, {"Name": self.name, "VersionId": version, "SecretString": value, "CreatedDate": created}

    def put(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the answer to PutSecretValue; it refuses to change the value of a version."""
        version, value = body["ClientRequestToken"], body["SecretString"]
        if self.values.setdefault(version, value) != value:
            return _refused("ResourceExistsException")
        for label in body.get("VersionStages", ["AWSCURRENT"]):
            self._put_label(label, version)
        return 200, {"Name": self.name, "VersionId": version}

    def update_stage(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the answer to UpdateSecretVersionStage; to move a label, the request must name its present version."""
        label, new, old = body["VersionStage"], body.get("MoveToVersionId"), body.get("RemoveFromVersionId")
        if self.staged(label) not in ({old} if new is None else {old, new}):
            return _refused("InvalidParameterException")
        if new is None:
            self.stages[str(old)].discard(label)
        else:
            self._put_label(label, new)
        return 200, {"Name": self.name}

    def _put_label(self, label: str, version: str) -> None:
        old = self.staged(label)
        for labels in self.stages.values():
            labels.discard(label)
        self.stages.setdefault(version, set()).add(label)
        if label == "AWSCURRENT" and old not in {None, version}:
            self._put_label("AWSPREVIOUS", str(old))
            if self.takes_pending_off:
                self.stages[version].discard("AWSPENDING")


def _refused(code: str) -> tuple[int, dict[str, Any]]:
    return 400, {"__type": code, "message": "as AWS refuses it"}
