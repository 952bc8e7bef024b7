"""A proxy in front of an AWS emulator that injects faults, so that the functions need no change.

    with AwsProxy(emulator_url) as proxy:  # proxy.url is an AWS_ENDPOINT_URL
        proxy.add(AwsFault(aws.THROTTLE, operation="PutItem", times=1))
        proxy.add(AwsFault(aws.KILL_AFTER, operation="PutItem", contains=b"some text", skip=1))
        ...
        assert [("PutItem", "throttle")] == [(call.operation, call.fault) for call in proxy.calls]

Concurrent requests each name their own faults, in any text of their bodies:

    send(idempotency_key="order-7;aws=PutItem.2.drop_after")  # the second PutItem that contains exactly this text
    send(idempotency_key="order-9;aws=Write.2.drop_after")  # the second write to DynamoDB, with any operation
    send(idempotency_key="order-8;aws=PutItem.1.throttle+PutItem.2.kill_before")

With `proxy.lag = Lag(3)`, DynamoDB's indexes return the data of three seconds ago.

The text of a marker extends in both directions over visible ASCII except quotes and backslashes. The proxy counts
calls for each such text and operation. The names of faults are the keys of `KINDS`.
"""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .lag import WRITES, Ask, Lag
from .listener import Listener
from .upstream import Answer, Upstream
from .wire import Exchange, Gate, Reader, Request

_TEXT = r"[!#-\[\]-~]*"  # the characters that JSON inside JSON does not escape
_MARKER = re.compile(rf"{_TEXT}\baws=(\w+\.\d+\.\w+(?:\+\w+\.\d+\.\w+)*){_TEXT}")
_SCOPE = re.compile(r"Credential=[^/]+/\d+/[^/]+/([\w-]+)/aws4_request")
_SIGNED = re.compile(rb"\r\n(authorization|x-amz-security-token):[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"(\r\ncontent-length: *)\d+", re.IGNORECASE)
_ROOT = b"AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/%b/aws4_request, SignedHeaders=host, Signature=0"


class AwsCall(NamedTuple):
    """One request. `status` is that of the answer, or None without an answer. `time` is in seconds since the epoch."""

    time: float
    service: str
    operation: str
    fault: str | None
    status: int | None
    marker_text: str | None = None


class AwsExchange(Exchange):
    """One request and its answer, passed to the fault that handles them."""

    def __init__(
        self,
        sock: socket.socket,
        gate: Gate,
        *,
        call: AwsCall,
        request: Request,
        forward: Callable[[Request], Answer],
        record: Callable[[AwsCall], None],
    ) -> None:
        super().__init__(sock, gate)
        self.call = call
        self.request = request
        self.forward = forward
        self._record = record
        self._is_settled = False

    def settle(self, status: int | None = None) -> None:
        """Record the call, once, before the client can notice its end."""
        if not self._is_settled:
            self._is_settled = True
            self._record(self.call._replace(status=status))

    def answer(self, answer: Answer) -> None:
        """Send a complete answer."""
        self.settle(answer.status)
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in answer.headers)]
        head = "\r\n".join([*lines, f"Content-Length: {len(answer.body)}", "", ""])
        self.send(head.encode("latin-1") + answer.body)

    def error(self, status: int, code: str) -> None:
        """Send an error in the format of AWS's JSON protocol."""
        self.answer(_json(status, {"__type": code, "message": "A text of AWS's"}))


@dataclass(frozen=True, slots=True)
class Kind:
    """A name, and the action that replaces forwarding a request and its answer."""

    name: str
    act: Callable[[AwsExchange], None]


@dataclass(frozen=True, slots=True)
class AwsFault:
    """A kind of fault and the calls that get it: all matching calls, or `times` of them after the first `skip`."""

    kind: Kind
    service: str | None = None
    operation: str | None = None
    contains: bytes = b""
    times: int | None = None
    skip: int = 0

    def matches(self, call: AwsCall, body: bytes) -> bool:
        """Return whether this fault applies to a call."""
        is_named = self.service in {None, call.service} and self.operation in {None, call.operation}
        return is_named and self.contains in body

    def hits(self, turn: int) -> bool:
        """Return whether a matching call gets the fault; `turn` is its number among the matching calls, from 1."""
        return turn > self.skip and (self.times is None or turn <= self.skip + self.times)


def _throttle(exchange: AwsExchange) -> None:
    is_dynamodb = exchange.call.service == "dynamodb"
    exchange.error(400, "ProvisionedThroughputExceededException" if is_dynamodb else "ThrottlingException")


def _drop(exchange: AwsExchange) -> None:
    exchange.settle()
    exchange.close()


def _hang(exchange: AwsExchange) -> None:
    exchange.settle()
    exchange.hang()
    exchange.close()


def _kill(exchange: AwsExchange) -> None:
    exchange.settle()
    exchange.kill()


def _kill_after(exchange: AwsExchange) -> None:
    exchange.aim()
    _after(_kill)(exchange)


def _after(act: Callable[[AwsExchange], None]) -> Callable[[AwsExchange], None]:
    """Return an action that forwards the request, discards the answer, and then acts."""

    def forward_and_act(exchange: AwsExchange) -> None:
        exchange.forward(exchange.request)
        act(exchange)

    return forward_and_act


def delay(seconds: float) -> Kind:
    """Return a fault that waits, and then forwards the request normally."""

    def act(exchange: AwsExchange) -> None:
        exchange.pause(seconds)
        exchange.answer(exchange.forward(exchange.request))

    return Kind("delay", act)


def refuse_entries(count: int) -> Kind:
    """Return a fault that answers PutEvents with 200, refuses the first entries and forwards only the others."""

    def act(exchange: AwsExchange) -> None:
        asked = json.loads(exchange.request.body)
        refused, others = asked["Entries"][:count], asked["Entries"][count:]
        answer = _json(200, {"FailedEntryCount": 0, "Entries": []})
        if others:
            answer = exchange.forward(_as_root(exchange.request, asked | {"Entries": others}))
        if answer.status != 200:
            exchange.answer(answer)
            return
        result = json.loads(answer.body)
        error = {"ErrorCode": "ThrottlingException", "ErrorMessage": "A text of AWS's"}
        result["Entries"] = [*(error for _ in refused), *result["Entries"]]
        result["FailedEntryCount"] += len(refused)
        exchange.answer(_json(200, result))

    return Kind("refuse_entries", act)


def visible_after(seconds: int, *, kill: bool = False) -> Kind:
    """Return a fault that sets the visibility timeout of a receive, and optionally kills the client before it."""

    def act(exchange: AwsExchange) -> None:
        asked = json.loads(exchange.request.body) | {"VisibilityTimeout": seconds}
        if kill:
            exchange.aim()
        answer = exchange.forward(_as_root(exchange.request, asked))
        if kill:
            _kill(exchange)
        else:
            exchange.answer(answer)

    return Kind("visible_after", act)


THROTTLE = Kind("throttle", _throttle)
DENY = Kind("deny", lambda exchange: exchange.error(400, "AccessDeniedException"))
FAIL = Kind("fail", lambda exchange: exchange.error(500, "InternalServerError"))
DROP_BEFORE = Kind("drop_before", _drop)
DROP_AFTER = Kind("drop_after", _after(_drop))
HANG_BEFORE = Kind("hang_before", _hang)
HANG_AFTER = Kind("hang_after", _after(_hang))
KILL_BEFORE = Kind("kill_before", _kill)
KILL_AFTER = Kind("kill_after", _kill_after)
"""`_AFTER` means that the operation was carried out and has no answer. A kill sends SIGKILL to the client's process."""

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        THROTTLE, DENY, FAIL, DROP_BEFORE, DROP_AFTER, HANG_BEFORE, HANG_AFTER, KILL_BEFORE, KILL_AFTER, delay(1),
        refuse_entries(1),
    )
}  # fmt: skip
"""The kinds of faults that a marker can name."""


class AwsProxy(Listener):
    """A proxy that runs from its construction until it is closed; without faults it is transparent."""

    def __init__(self, upstream_url: str | None = None, *, port: int = 0) -> None:
        """Start to listen; `upstream_url` can be set at any time."""
        super().__init__(port)
        self.upstream_url = upstream_url
        self.lag: Lag | None = None
        self.url = f"http://127.0.0.1:{self.port}"
        self._calls: list[AwsCall] = []
        self._marked: Counter[tuple[str, str]] = Counter()
        self._faults: list[AwsFault] = []
        self._turns: list[int] = []
        self._start()

    @property
    def calls(self) -> list[AwsCall]:
        """All requests so far, in the order in which they were answered or their faults ended them."""
        with self._changed:
            return list(self._calls)

    def count(self, operation: str) -> int:
        """Return how many requests there were for an operation."""
        return sum(call.operation == operation for call in self.calls)

    def add(self, fault: AwsFault) -> None:
        """Inject a fault into calls from now on; if several faults match a call, it gets the one added first."""
        with self._changed:
            self._faults.append(fault)
            self._turns.append(0)

    @contextmanager
    def failing(self, *faults: AwsFault) -> Iterator[None]:
        """Inject these faults during a `with` block; at its end, release all requests that hang."""
        for fault in faults:
            self.add(fault)
        try:
            yield
        finally:
            with self._changed:
                for fault in faults:
                    place = next(index for index, each in enumerate(self._faults) if each is fault)
                    del self._faults[place], self._turns[place]
            self.release()

    def clear(self) -> None:
        """Remove all added faults and release all requests that hang."""
        with self._changed:
            self._faults.clear()
            self._turns.clear()
        self.release()

    def reset(self) -> None:
        """Remove all faults and calls and release requests that hang; the counts of markers are kept."""
        self.clear()
        with self._changed:
            self._calls.clear()

    def _talk(self, sock: socket.socket, number: int) -> None:  # noqa: ARG002 connections are not counted here
        reader = Reader(sock)
        with closing(Upstream(self._track)) as upstream:
            is_open = True
            while is_open:
                head, body, complete = reader.read()
                is_open = complete and self._exchange(sock, Request(0, time.time(), head=head, body=body), upstream)

    def _exchange(self, sock: socket.socket, request: Request, upstream: Upstream) -> bool:
        """Answer one request; return whether the connection can have another."""

        def forward(request: Request) -> Answer:
            if self.upstream_url is None:
                raise ConnectionRefusedError
            answer = upstream.forward(self.upstream_url, request)
            if self.lag and service == "dynamodb" and answer.status == 200:
                answer = _lagging(self.lag, operation, request, answer, ask)
            return answer

        def ask(operation: str, content: dict[str, Any]) -> dict[str, Any]:
            answer = upstream.forward(self.upstream_url or "", _dynamodb(operation, content))
            asked: dict[str, Any] = json.loads(answer.body)
            return asked

        service, operation = _named(request)
        call, kind = self._chosen(AwsCall(request.time, service, operation, None, None), request.body)
        exchange = AwsExchange(sock, self._gate, call=call, request=request, forward=forward, record=self._record)
        try:
            if kind:
                kind.act(exchange)
            else:
                exchange.answer(forward(request))
        finally:
            exchange.settle()
        return exchange.is_open and (request.header("Connection") or "").lower() != "close"

    def _record(self, call: AwsCall) -> None:
        with self._changed:
            self._calls.append(call)

    def _chosen(self, call: AwsCall, body: bytes) -> tuple[AwsCall, Kind | None]:
        """Return the call, updated with the fault that it gets, and that fault's kind."""
        texts: dict[str, str] = {}
        if b"aws=" in body:  # a fast check: the regular expression takes longer
            texts = {match[0]: match[1] for match in _MARKER.finditer(body.decode("latin-1"))}
        chosen: Kind | None = None
        with self._changed:
            for text, marker in texts.items():
                named = dict(each.rsplit(".", 1) for each in marker.split("+"))
                for operation in (call.operation, *(["Write"] if call.operation in WRITES else [])):
                    self._marked[text, operation] += 1
                    turn = f"{operation}.{self._marked[text, operation]}"
                    if not chosen and turn in named:
                        chosen = KINDS[named[turn]]
                        call = call._replace(marker_text=text)
            for index, fault in enumerate(self._faults):
                if fault.matches(call, body):
                    self._turns[index] += 1
                    if not chosen and fault.hits(self._turns[index]):
                        chosen = fault.kind
        if texts and not call.marker_text:
            call = call._replace(marker_text=next(iter(texts)))
        return call._replace(fault=chosen.name if chosen else None), chosen


def _named(request: Request) -> tuple[str, str]:
    """Return service and operation: from the target header of the JSON protocol, or else from scope and path."""
    target = request.header("X-Amz-Target") or ""
    scope = _SCOPE.search(request.header("Authorization") or "")
    service = scope[1] if scope else ""
    prefix, _, operation = target.rpartition(".")
    if not operation:
        return service, f"{request.method} {request.path}"
    return service or prefix.removeprefix("Amazon").partition("_")[0].lower(), operation


def _as_root(request: Request, content: Any) -> Request:
    """Return the request with another body and root's credentials, whose signature the emulator does not check."""
    body = json.dumps(content).encode()
    service, _ = _named(request)
    head = _LENGTH.sub(rb"\g<1>%d" % len(body), _SIGNED.sub(b"", request.head))
    head = head.replace(b"\r\n", b"\r\nAuthorization: %b\r\n" % (_ROOT % service.encode()), 1)
    return replace(request, head=head, body=body)


def _dynamodb(operation: str, content: dict[str, Any]) -> Request:
    """Return a request to DynamoDB with root's credentials."""
    body = json.dumps(content).encode()
    lines = ["POST / HTTP/1.1", "Host: localhost", f"X-Amz-Target: DynamoDB_20120810.{operation}"]
    lines += ["Content-Type: application/x-amz-json-1.0", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, f"Authorization: {(_ROOT % b'dynamodb').decode()}", "", ""]).encode()
    return Request(0, time.time(), head=head, body=body)


def _lagging(lag: Lag, operation: str, request: Request, answer: Answer, ask: Ask) -> Answer:
    """Record a write, and return a query's answer as its index was before the lag."""
    asked = json.loads(request.body)
    if operation in WRITES:
        lag.wrote(operation, asked, ask)
    if operation == "Query" and "IndexName" in asked:
        present = json.loads(answer.body)
        then = lag.answer(asked, present, ask)
        if then is not present:
            headers = tuple(header for header in answer.headers if header[0].lower() != "x-amz-crc32")
            answer = answer._replace(headers=headers, body=json.dumps(then).encode())
    return answer


def _json(status: int, value: Any) -> Answer:
    headers = (("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-RequestId", "0" * 32))
    return Answer(status, "Status", headers, json.dumps(value).encode())
