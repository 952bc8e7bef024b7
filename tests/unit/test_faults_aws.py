"""The proxy in front of AWS: it forwards every call unchanged, except for the faults that a test adds."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults import AwsFault, AwsProxy, Lag, aws, peers

_SENDER = """\
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("POST", "/", "x", {"X-Amz-Target": "DynamoDB_20120810.PutItem"})
connection.getresponse()
"""


class Seen(NamedTuple):
    """A request that reached the emulator."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


class Emulator(ThreadingHTTPServer):
    """A server in place of the AWS emulator: it answers every request, and records it."""

    request_queue_size = 100
    seen: list[Seen]
    answers: dict[str, Any]
    """Answers by operation; any other operation gets the default answer."""

    class Handler(BaseHTTPRequestHandler):
        """Answers the requests of a connection one after the other."""

        protocol_version = "HTTP/1.1"
        server: "Emulator"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.server.seen.append(Seen(self.command, self.path, self.headers.items(), body))
            entries = json.loads(body).get("Entries", []) if body.startswith(b"{") else []
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            default = {"FailedEntryCount": 0, "Entries": [{"EventId": entry["Id"]} for entry in entries]}
            answer = json.dumps(self.server.answers.get(operation, default)).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Twice: 1\r\nX-Twice: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer), answer))

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 names of the base class

        def log_message(self, *_: Any) -> None:
            """Log nothing."""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Yield a server in place of the AWS emulator."""
    with Emulator(("127.0.0.1", 0), Emulator.Handler) as server:
        server.seen, server.answers = [], {}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(emulator: Emulator) -> Iterator[AwsProxy]:
    """Yield a proxy in front of the emulator."""
    with AwsProxy(f"http://127.0.0.1:{emulator.server_port}") as made:
        yield made


class Outcome(NamedTuple):
    """The result of a call: status and answer, or the name of an error."""

    status: int | None = None
    answer: Any = None
    error: str | None = None

    @property
    def code(self) -> str | None:
        """AWS's error code, or the name of the error."""
        return self.answer.get("__type") if self.answer else self.error


def authorization(service: str) -> str:
    """Return the Authorization header of a request that is signed for a service."""
    return f"AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request, Signature=0"


def call(
    proxy: AwsProxy, operation: str, body: object = "x", *, service: str = "dynamodb", seconds: float = 5
) -> Outcome:
    """Call an operation through the proxy, and return the result."""
    headers = {"X-Amz-Target": f"Any_20120810.{operation}", "Authorization": authorization(service)}
    with closing(HTTPConnection("127.0.0.1", proxy.port, timeout=seconds)) as connection:
        try:
            connection.request("POST", "/", body if isinstance(body, str) else json.dumps(body), headers)
            response = connection.getresponse()
            return Outcome(response.status, json.loads(response.read()))
        except (OSError, HTTPException) as error:
            return Outcome(error=type(error).__name__)


def test_nothing_is_changed(proxy: AwsProxy, emulator: Emulator) -> None:
    """Method, path, headers (with Host) and body reach the emulator unchanged, and the answer comes back unchanged."""
    headers = {"Host": "queue.example:1", "X-A": "1", "Content-Length": "2"}
    with closing(HTTPConnection("127.0.0.1", proxy.port, timeout=5)) as connection:
        for _ in range(3):  # on one connection
            connection.request("PUT", "/a%20b?c=%2F&d", b"\0\xff", headers)
            response = connection.getresponse()
            answer = (response.status, response.headers.get_all("X-Twice"), json.loads(response.read()))

            assert (200, ["1", "2"], {"FailedEntryCount": 0, "Entries": []}) == answer

    seen = Seen("PUT", "/a%20b?c=%2F&d", [*headers.items(), ("Accept-Encoding", "identity")], b"\0\xff")
    assert [seen] * 3 == [
        each._replace(headers=sorted(each.headers, key=lambda one: one[0] == "Accept-Encoding"))
        for each in emulator.seen
    ]
    assert [("", "PUT /a%20b", None, 200)] * 3 == [
        (each.service, each.operation, each.fault, each.status) for each in proxy.calls
    ]


def test_a_thousand_open_files_are_no_limit(proxy: AwsProxy) -> None:
    """The proxy works with over 1,024 open files: its sockets may have higher numbers than select() supports."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as ending:
        ending.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            ending.enter_context(Path(os.devnull).open())
        connection = ending.enter_context(closing(HTTPConnection("127.0.0.1", proxy.port, timeout=5)))
        for _ in range(2):  # the second request reuses the first one's connection
            connection.request("POST", "/", "x")
            response = connection.getresponse()

            assert (200, []) == (response.status, json.loads(response.read())["Entries"])
    assert [] == proxy.errors


@pytest.mark.parametrize(
    ("target", "scope", "expected"),
    [
        ("DynamoDB_20120810.PutItem", "dynamodb", ("dynamodb", "PutItem")),
        ("AmazonSQS.SendMessage", "sqs", ("sqs", "SendMessage")),
        ("AWSEvents.PutEvents", "events", ("events", "PutEvents")),
        ("secretsmanager.GetSecretValue", None, ("secretsmanager", "GetSecretValue")),
        (None, "lambda", ("lambda", "GET /x")),
    ],
)
def test_calls_have_names(proxy: AwsProxy, target: str | None, scope: str | None, expected: tuple[str, str]) -> None:
    """A call has the service of its signature or else of its target, and the operation of its target or its path."""
    headers = {"X-Amz-Target": target} if target else {}
    if scope:
        headers["Authorization"] = authorization(scope)
    with closing(HTTPConnection("127.0.0.1", proxy.port, timeout=5)) as connection:
        connection.request("GET", "/x?y", headers=headers)
        connection.getresponse().read()

    assert [expected] == [(each.service, each.operation) for each in proxy.calls]
    assert 1 == proxy.count(expected[1])


@pytest.mark.parametrize(
    ("service", "kind", "expected", "carried_out"),
    [
        ("dynamodb", aws.THROTTLE, (400, "ProvisionedThroughputExceededException"), 0),
        ("sqs", aws.THROTTLE, (400, "ThrottlingException"), 0),
        ("dynamodb", aws.DENY, (400, "AccessDeniedException"), 0),
        ("dynamodb", aws.FAIL, (500, "InternalServerError"), 0),
        ("dynamodb", aws.DROP_BEFORE, (None, "RemoteDisconnected"), 0),
        ("dynamodb", aws.DROP_AFTER, (None, "RemoteDisconnected"), 1),
        ("dynamodb", aws.delay(0.01), (200, None), 1),
    ],
)
def test_a_kind_shows(
    proxy: AwsProxy,
    emulator: Emulator,
    service: str,
    kind: aws.Kind,
    expected: tuple[int | None, str | None],
    carried_out: int,
) -> None:
    """Each kind of fault ends a call as its name says, before or after the operation."""
    proxy.add(AwsFault(kind))
    outcome = call(proxy, "PutItem", service=service)

    assert expected == (outcome.status, outcome.code)
    assert carried_out == len(emulator.seen)
    assert [(kind.name, outcome.status)] == [(each.fault, each.status) for each in proxy.calls]


def test_calls_are_chosen(proxy: AwsProxy) -> None:
    """A fault hits the calls that match it, after the first `skip` and at most `times`, until it is cleared."""
    proxy.add(AwsFault(aws.FAIL, service="dynamodb", operation="PutItem", contains=b"this", times=2, skip=1))
    outcomes = [call(proxy, "PutItem", text) for text in ("this", "that", "this", "and this", "this")]
    others = [call(proxy, "GetItem", "this"), call(proxy, "PutItem", "this", service="events")]

    assert [200, 200, 500, 500, 200] == [outcome.status for outcome in outcomes]
    assert [200, 200] == [outcome.status for outcome in others]
    proxy.add(AwsFault(aws.DENY))
    assert 400 == call(proxy, "GetItem").status
    proxy.clear()
    assert 200 == call(proxy, "GetItem").status
    assert (2, 6) == (proxy.count("GetItem") - 1, proxy.count("PutItem"))


def test_a_text_names_its_faults(proxy: AwsProxy) -> None:
    """A marker counts the calls of its operation with the same text, anywhere in the body, and no other calls."""
    key = "order-7;aws=PutItem.1.throttle+PutItem.3.fail+SendMessage.1.deny;callback=none"
    first = {"Item": {"idempotency_key": {"S": key}, "sms": {"S": json.dumps({"message": f"Hello {key}"})}}}
    other = {"Item": {"idempotency_key": {"S": key.replace("7", "8")}}}

    outcomes = [call(proxy, *each) for each in (("PutItem", first), ("GetItem", first), ("PutItem", other))]
    assert [400, 200, 400] == [outcome.status for outcome in outcomes]
    assert [200, 500, 200] == [call(proxy, "PutItem", first).status for _ in range(3)]
    assert "AccessDeniedException" == call(proxy, "SendMessage", {"MessageBody": json.dumps(first)}).code
    assert {key, key.replace("7", "8")} == {each.marker_text for each in proxy.calls}


def test_texts_at_the_same_time(proxy: AwsProxy) -> None:
    """Each text gets its own fault, even if many calls run at the same time."""
    keys = [f"key-{number};aws=PutItem.2.fail" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda key: [call(proxy, "PutItem", {"S": key}).status for _ in range(3)], keys))

    assert [[200, 500, 200]] * 40 == outcomes


@pytest.mark.parametrize(("count", "arrived"), [(1, ["b", "c"]), (2, ["c"]), (3, [])])
def test_entries_are_refused(proxy: AwsProxy, emulator: Emulator, count: int, arrived: list[str]) -> None:
    """The first entries are refused, and only the others reach the emulator."""
    proxy.add(AwsFault(aws.refuse_entries(count), operation="PutEvents"))
    status, answer, _ = call(proxy, "PutEvents", {"Entries": [{"Id": each} for each in "abc"]}, service="events")

    assert (200, count) == (status, answer["FailedEntryCount"])
    assert ["ThrottlingException"] * count == [each["ErrorCode"] for each in answer["Entries"][:count]]
    assert arrived == [each["EventId"] for each in answer["Entries"][count:]]
    assert arrived == [entry["Id"] for each in emulator.seen for entry in json.loads(each.body)["Entries"]]


def test_the_client_has_enough(proxy: AwsProxy, emulator: Emulator) -> None:
    """A call that hangs is carried out, and ends with the client's own timeout."""
    proxy.add(AwsFault(aws.HANG_AFTER))

    assert "TimeoutError" == call(proxy, "PutItem", seconds=0.1).error
    assert 1 == len(emulator.seen)


def test_what_hangs_is_released(proxy: AwsProxy) -> None:
    """A call that hangs ends when the faults are cleared."""
    proxy.add(AwsFault(aws.HANG_AFTER))
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(call, proxy, "PutItem")
        while not proxy.calls:
            pass
        proxy.clear()

        assert "RemoteDisconnected" == outcome.result().error


@pytest.mark.parametrize(("kind", "carried_out"), [(aws.KILL_BEFORE, 0), (aws.KILL_AFTER, 1)])
def test_the_client_is_killed(proxy: AwsProxy, emulator: Emulator, kind: aws.Kind, carried_out: int) -> None:
    """The calling process is killed before or after the operation."""
    proxy.add(AwsFault(kind))
    client = subprocess.run([sys.executable, "-c", _SENDER, str(proxy.port)], check=False, timeout=10)

    assert (-9, carried_out) == (client.returncode, len(emulator.seen))


def test_only_others_are_killed() -> None:
    """The test's own process is never killed, and a client that closed its connection counts as killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        with client, listener.accept()[0] as server:
            with pytest.raises(LookupError):
                peers.find(server)
            client.close()

            assert peers.find(server) is None


def test_its_own_mistakes_are_not_hidden() -> None:
    """A marker with an unknown kind of fault fails its test."""
    with pytest.raises(ExceptionGroup, match="the fault server failed by itself"), AwsProxy() as proxy:
        assert "RemoteDisconnected" == call(proxy, "PutItem", "aws=PutItem.1.no_such_kind").error


# An index that lags behind its table

_TABLE = {
    "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": "index",
            "KeySchema": [{"AttributeName": "open", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["state"]},
        }
    ],
}
_QUERY = {"TableName": "table", "IndexName": "index", "ExpressionAttributeValues": {":value": {"S": "yes"}}}


class Table:
    """A table, and a proxy's `Lag` that sees every write to the table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the index lag by three seconds, measured with a clock that the test sets."""
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.items: dict[str, dict[str, dict[str, str]]] = {}
        self.lag = Lag(3)

    def put(self, name: str, **attributes: str) -> None:
        """Write an item."""
        item = {key: {"S": value} for key, value in {"id": name, **attributes}.items()}
        self.items[name] = item
        self.lag.wrote("PutItem", {"TableName": "table", "Item": item}, self._ask)

    def write(self, operation: str, asked: dict[str, Any]) -> None:
        """Report another kind of write to the lag."""
        self.lag.wrote(operation, asked, self._ask)

    def query(self) -> list[str]:
        """Return the items in the index, each as `id state`."""
        present = [item for item in self.items.values() if item.get("open") == {"S": "yes"}]
        found = self.lag.answer(_QUERY, {"Items": present, "Count": len(present)}, self._ask)["Items"]
        return sorted(" ".join(item[name]["S"] for name in ("id", "state") if name in item) for item in found)

    def _ask(self, operation: str, content: dict[str, Any]) -> dict[str, Any]:
        if operation == "DescribeTable":
            return {"Table": _TABLE}
        found = self.items.get(content["Key"]["id"]["S"])
        return {"Item": found} if found else {}


def test_an_index_learns_of_an_item_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that was written a moment ago is not in the index yet."""
    table = Table(monkeypatch)
    table.put("a", open="yes", state="sending")
    assert [] == table.query()

    table.now += 3.1
    assert ["a sending"] == table.query()
    assert 1 == table.lag.outdated


def test_an_index_has_what_an_item_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index has the old version of an item that just changed or left it, with projected attributes only."""
    table = Table(monkeypatch)
    for name in ("a", "b"):
        table.put(name, open="yes", state="sending", secret="not projected")
    table.now += 3.1
    table.put("a", open="yes", state="sent")
    table.put("b", state="sent")
    assert ["a sending", "b sending"] == table.query()

    table.now += 3.1
    assert ["a sent"] == table.query()


def test_an_index_follows_every_kind_of_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index also lags behind transactions, updates and deletions."""
    table = Table(monkeypatch)
    put = {"TableName": "table", "Item": {"id": {"S": "a"}, "open": {"S": "yes"}, "state": {"S": "sending"}}}
    table.items["a"] = put["Item"]  # type: ignore[assignment]
    table.write("TransactWriteItems", {"TransactItems": [{"Put": put}]})
    assert [] == table.query()

    table.now += 3.1
    table.items["a"] = table.items["a"] | {"state": {"S": "sent"}}
    table.write("UpdateItem", {"TableName": "table", "Key": {"id": {"S": "a"}}})
    assert ["a sending"] == table.query()

    table.now += 3.1
    del table.items["a"]
    table.write("DeleteItem", {"TableName": "table", "Key": {"id": {"S": "a"}}})
    assert ["a sent"] == table.query()


def test_a_proxy_whose_indexes_are_behind(emulator: Emulator) -> None:
    """A query gets the old items of the index; the proxy's own look-ups bypass faults and are not recorded."""
    asked = []
    emulator.answers = {
        "DescribeTable": {"Table": _TABLE},
        "Query": {"Items": [{"id": {"S": "a"}, "open": {"S": "yes"}}], "Count": 1},
    }
    with AwsProxy(f"http://127.0.0.1:{emulator.server_port}") as proxy:
        proxy.lag = Lag(3)
        put = {"TableName": "table", "Item": {"id": {"S": "a"}, "open": {"S": "yes"}}}
        for operation, content in (("PutItem", put), ("Query", _QUERY)):
            asked.append(_called(proxy, operation, content))

    assert {"Items": [], "Count": 0, "ScannedCount": 0} == asked[1]
    assert ["PutItem", "Query"] == [call.operation for call in proxy.calls]


def test_faults_for_a_while(emulator: Emulator) -> None:
    """Faults that are added for a while leave the earlier faults in place."""
    with AwsProxy(f"http://127.0.0.1:{emulator.server_port}") as proxy:
        proxy.add(AwsFault(aws.DENY, operation="PutItem", skip=1))
        with proxy.failing(AwsFault(aws.THROTTLE, operation="Query")):
            _called(proxy, "Query", {})
            _called(proxy, "PutItem", {})
        _called(proxy, "Query", {})
        _called(proxy, "PutItem", {})

    assert ["throttle", None, None, "deny"] == [call.fault for call in proxy.calls]


def test_a_write_by_whatever_operation(emulator: Emulator) -> None:
    """A marker may count all writes to DynamoDB together, as `Write`."""
    text = {"key": "order-7;aws=Write.2.throttle"}
    with AwsProxy(f"http://127.0.0.1:{emulator.server_port}") as proxy:
        for operation in ("GetItem", "PutItem", "TransactWriteItems", "PutItem"):
            _called(proxy, operation, text)

    assert [None, None, "throttle", None] == [call.fault for call in proxy.calls]


def _called(proxy: AwsProxy, operation: str, content: dict[str, Any]) -> dict[str, Any]:
    with closing(HTTPConnection("127.0.0.1", proxy.port)) as connection:
        connection.request("POST", "/", json.dumps(content), {"X-Amz-Target": f"DynamoDB_20120810.{operation}"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
