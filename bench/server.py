"""Fakes of Twilio and AWS on loopback. They are fast and have no faults, so they cost all candidates the same.

The module runs as a separate process, which prints its ports. Twilio uses TLS. AWS has the operations of DynamoDB (with
conditions), Secrets Manager, SQS and EventBridge that the functions call. `GET /bench` at the AWS address returns the
counts of requests. With a query it also sets the latencies: `/bench?twilio=0.15&aws=0.005`.
"""

import argparse
import asyncio
import json
import re
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from bench.account import ACCOUNT_SID, MESSAGES, SECRET, message

_CONDITION = re.compile(r"(\w+) = (:\w+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TARGET = re.compile(rb"\r\nx-amz-target: *[\w]+\.(\w+)", re.IGNORECASE)

_PATH = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages"


class Load:
    """Counts of the requests that are in flight."""

    def __init__(self) -> None:
        """Start without requests."""
        self.reset()

    def reset(self) -> None:
        """Reset the counts."""
        self.requests = self.now = self.most = 0
        self._area = 0.0
        self._first = self._changed = 0.0

    def change(self, by: int) -> None:
        """Count the start or the end of a request."""
        now = time.perf_counter()
        self._first = self._first or now
        self._area += self.now * (now - self._changed)
        self._changed = now
        self.now += by
        self.most = max(self.most, self.now)
        self.requests += by > 0

    def summary(self) -> dict[str, float]:
        """Return the number of requests, the most and the mean in flight, and the average seconds of a request."""
        seconds = self._changed - self._first
        return {
            "requests": self.requests,
            "most": self.most,
            "mean": self._area / seconds if seconds else 0,
            "seconds": self._area / self.requests if self.requests else 0,
        }


class Twilio:
    """Twilio's Messages resource."""

    def __init__(self) -> None:
        """Start without sent messages; the list is that of an account with many messages."""
        self.latency = 0.0
        self.load = Load()
        self._sent = 0
        self._pages: dict[tuple[int, int], bytes] = {}

    def answer(self, method: str, target: str, _head: bytes, body: bytes) -> tuple[int, bytes]:
        """Return status and body."""
        url = urlsplit(target)
        if url.path == f"{_PATH}.json" and method == "POST":
            self._sent += 1
            form = dict(parse_qsl(body.decode()))
            sent = message(self._sent) | {"to": form.get("To"), "from": form.get("From"), "body": form.get("Body")}
            return 201, json.dumps(sent).encode()
        if url.path == f"{_PATH}.json":
            query = dict(parse_qsl(url.query))
            return 200, self._page(int(query.get("PageSize", 50)), int(query.get("Page", 0)))
        return 200, json.dumps(message(0)).encode()

    def _page(self, size: int, number: int) -> bytes:
        """Return a page of the list. It is created only once, so that later requests cost only the transfer."""
        if (size, number) not in self._pages:
            indexes = range(number * size, min((number + 1) * size, MESSAGES))
            more = f"{_PATH}.json?PageSize={size}&Page={number + 1}&PageToken=PASM{number + 1}"
            page = {
                "messages": [message(index) for index in indexes],
                "next_page_uri": more if indexes.stop < MESSAGES else None,
                "page": number,
                "page_size": size,
                "uri": f"{_PATH}.json?PageSize={size}&Page={number}",
            }
            self._pages[size, number] = json.dumps(page).encode()
        return self._pages[size, number]


class Aws:
    """The AWS services that the functions call."""

    def __init__(self, twilio: Twilio) -> None:
        """Start with empty tables."""
        self.latency = 0.0
        self.load = Load()
        self._twilio = twilio
        self._items: dict[tuple[str, str], dict[str, Any]] = {}

    def answer(self, method: str, target: str, head: bytes, body: bytes) -> tuple[int, bytes]:
        """Return status and body."""
        if method == "GET":
            return 200, json.dumps(self._control(target)).encode()
        operation = _TARGET.search(head)
        status, answer = self._operation(operation[1].decode() if operation else "", json.loads(body))
        return status, json.dumps(answer).encode()

    def _control(self, target: str) -> dict[str, Any]:
        load = {"twilio": self._twilio.load.summary(), "aws": self.load.summary()}
        if query := parse_qs(urlsplit(target).query):
            for side, name in ((self._twilio, "twilio"), (self, "aws")):
                side.latency = float(query[name][0])
                side.load.reset()
            self._items.clear()
        return load

    def _operation(self, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer: dict[str, Any] = {}
        match name:
            case "PutItem":
                return self._put(asked)
            case "TransactWriteItems":
                for each in asked["TransactItems"]:
                    self._put(each["Put"])
            case "GetItem":
                item = self._items.get((asked["TableName"], asked["Key"]["id"]["S"]))
                answer = {"Item": item} if item else {}
            case "Query":
                answer = {"Items": [], "Count": 0}
            case "GetSecretValue":
                answer = {"Name": asked["SecretId"], "SecretString": json.dumps(SECRET), "CreatedDate": 1795435200}
            case "PutEvents":
                answer = {"FailedEntryCount": 0, "Entries": [{"EventId": "event"} for _ in asked["Entries"]]}
            case "SendMessage":
                answer = {"MessageId": "message"}
        return 200, answer

    def _put(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        key = asked["TableName"], asked["Item"]["id"]["S"]
        old = self._items.get(key)
        condition = asked.get("ConditionExpression", "")
        holds = True
        if condition.startswith("attribute_not_exists"):
            holds = old is None
        elif named := _CONDITION.fullmatch(condition):
            holds = old is not None and old.get(named[1]) == asked["ExpressionAttributeValues"][named[2]]
        if not holds:
            name = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"
            return 400, {"__type": name, "message": "The conditional request failed"} | ({"Item": old} if old else {})
        self._items[key] = asked["Item"]
        return 200, {}


class Connection(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, side: Twilio | Aws) -> None:
        """Serve the side of Twilio or of AWS."""
        self._side = side
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Add data to the request, and answer it once it is complete."""
        self._data += data
        end = self._data.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 not found
            return
        head = bytes(self._data[:end])
        length = _LENGTH.search(head)
        whole = end + (int(length[1]) if length else 0)
        if len(self._data) < whole:
            return
        body = bytes(self._data[end:whole])
        del self._data[:whole]
        method, target, _ = head.split(b" ", 2)
        if method == b"GET" and target.startswith(b"/bench"):
            self._send(*self._side.answer("GET", target.decode(), head, body))
            return
        self._side.load.change(1)
        answer = self._side.answer(method.decode(), target.decode(), head, body)
        if self._side.latency:
            asyncio.get_running_loop().call_later(self._side.latency, self._finish, *answer)
        else:
            self._finish(*answer)

    def _finish(self, status: int, body: bytes) -> None:
        self._side.load.change(-1)
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        if self._transport:
            self._transport.write(head.encode() + body)


async def serve(certificate: str) -> None:
    """Listen until standard input ends."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    twilio = Twilio()
    aws = Aws(twilio)

    async def listen(make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> int:
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=context, backlog=1024)
        port: int = server.sockets[0].getsockname()[1]
        return port

    ports = {
        "twilio": await listen(lambda: Connection(twilio), tls),
        "aws": await listen(lambda: Connection(aws), None),
    }
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("certificate")
    asyncio.run(serve(parser.parse_args().certificate))
