"""The faults that can occur between the connector and Twilio; tests script them or name them in a request.

Constants are ready faults; functions take parameters and return a `Fault`. The "normal" answer is the one that
Twilio would give to the request (201 and a message for a send, and so on).
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import Enum
from typing import Literal

from .wire import Exchange, Reply

type Headers = Mapping[str, str] | Sequence[tuple[str, str]]

_MEGABYTE = 1 << 20
_START = b'{"sid": "SM00000000000000000000000000000000", "body": "'
_END = b'"}'


class Stage(Enum):
    """The stage of a connection at which a fault acts."""

    CONNECTED = "connected"  # before TLS
    READABLE = "readable"  # bytes of a request have arrived and have not been read
    RECEIVED = "received"  # the whole request was read


@dataclass(frozen=True, slots=True)
class Fault:
    """A name and the action that replaces the normal answer; if `forwards`, a relay forwards the request first."""

    name: str
    act: Callable[[Exchange], None]
    stage: Stage = Stage.RECEIVED
    forwards: bool = True


OK = Fault("ok", lambda exchange: exchange.reply(exchange.normal))
"""No fault: the normal answer."""


# Complete answers


def status(
    code: int,
    *,
    twilio_code: int | None = None,
    message: str = "A text of Twilio's",
    body: str | bytes | None = None,
    headers: Headers = (),
) -> Fault:
    """Return a fault that answers with a status; without `body`, an error has Twilio's error object."""
    if body is None:
        error = {"code": twilio_code or 20000 + code, "message": message, "status": code}
        error["more_info"] = f"https://www.twilio.com/docs/errors/{error['code']}"
        body = json.dumps(error) if code >= 400 else b""
    content = body.encode() if isinstance(body, str) else body
    reply = Reply(code, content, tuple(headers.items() if isinstance(headers, Mapping) else headers))
    return Fault(f"status_{twilio_code or code}", lambda exchange: exchange.reply(reply))


def too_many(retry_after: str | timedelta | None = None) -> Fault:
    """Return a fault that answers 429 (20429) with Retry-After; a timedelta is sent as an HTTP date from now."""

    def act(exchange: Exchange) -> None:
        value = retry_after
        if isinstance(value, timedelta):
            value = format_datetime(datetime.now(UTC) + value, usegmt=True)
        status(429, twilio_code=20429, headers={} if value is None else {"Retry-After": value}).act(exchange)

    return Fault("status_429" if retry_after is None else f"status_429_after_{retry_after}", act)


def redirect(code: int, location: str) -> Fault:
    """Return a fault that redirects to another URL with 301, 302, 303, 307 or 308."""
    return replace(status(code, headers={"Location": location}), name=f"redirect_{code}")


def html(code: int) -> Fault:
    """Return a fault that answers with an HTML page, as a proxy does."""
    page = f"<html><head><title>{code}</title></head><body><center><h1>{code}</h1></center></body></html>"
    return replace(status(code, body=page, headers={"Content-Type": "text/html"}), name=f"html_{code}")


def answer(
    body: bytes, *, code: int | None = None, content_type: str = "application/json", headers: Headers = ()
) -> Fault:
    """Return a fault that answers with another body; the default status is the normal one (201 or 200)."""
    more = {"Content-Type": content_type, **dict(headers)}

    def act(exchange: Exchange) -> None:
        exchange.reply(Reply(code or exchange.normal.status, body, tuple(more.items())))

    return Fault("answer", act)


UNAUTHORIZED = status(401, twilio_code=20003, message="Authenticate")
OPTED_OUT = status(400, twilio_code=21610)
QUEUE_FULL = status(429, twilio_code=21611)
NOT_FOUND = status(404, twilio_code=20404)
NO_CONTENT = Fault("no_content", lambda exchange: exchange.reply(Reply(204)))


# Bodies that are invalid for a 2xx answer

BODIES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \r\n",
    "cut": b'{"sid": "SM0000000000',
    "invalid": b"{sid: SM00000000000000000000000000000000}",
    "text": b"OK",
    "html": b"<html><body>Sign in to the network</body></html>",
    "xml": b"<?xml version='1.0'?><TwilioResponse/>",
    "no_sid": b'{"status": "queued"}',
    "null_sid": b'{"sid": null}',
    "number_sid": b'{"sid": 5}',
    "list_sid": b'{"sid": ["SM00000000000000000000000000000000"]}',
    "foreign_sid": b'{"sid": "CA00000000000000000000000000000000"}',
    "nan": b'{"sid": NaN, "price": Infinity}',
    "object": b"{}",
    "list": b"[]",
    "string": b'"SM00000000000000000000000000000000"',
    "number": b"201",
    "null": b"null",
    "true": b"true",
    "two": b'{"sid": "SM00000000000000000000000000000000"}{"sid": "SM00000000000000000000000000000001"}',
    "deep": b'{"sid": ' * 100_000,
    "digits": b'{"sid": ' + b"9" * 5_000 + b"}",
    "not_utf8": b'{"sid": "SM\xff\xfe"}',
    "utf16": '{"sid": "SM00000000000000000000000000000000"}'.encode("utf-16"),
    "zeros": bytes(64),
}
"""Bodies by name: each has the length that Content-Length announces, and none is a message."""


def body(name: str) -> Fault:
    """Return a fault that answers normally, but with one of `BODIES`."""
    return replace(answer(BODIES[name]), name=f"body_{name}")


# Bodies and heads that are too large


def _json_of(size: int) -> Iterator[bytes]:
    """Yield JSON that has exactly `size` bytes."""
    yield _START
    left = size - len(_START) - len(_END)
    while left > 0:
        yield b"0" * min(left, _MEGABYTE)
        left -= _MEGABYTE
    yield _END


def huge(megabytes: float, *, content_type: str = "application/json") -> Fault:
    """Return a fault that answers with a body of this size, which is valid JSON with a `sid`."""
    size = int(megabytes * _MEGABYTE)

    def act(exchange: Exchange) -> None:
        headers = (("Content-Type", content_type), ("Content-Length", str(size)))
        exchange.send(Reply(exchange.normal.status, headers=headers).head)
        for piece in _json_of(size):
            exchange.send(piece)

    return Fault("huge", act)


def gzip_bomb(megabytes: int = 1024) -> Fault:
    """Return a fault that sends valid JSON of this size, compressed to a thousandth and never held in memory."""

    def act(exchange: Exchange) -> None:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        # After a full flush, no data refers to earlier data, so one piece can be sent many times.
        pieces = [squeeze.compress(data) + squeeze.flush(zlib.Z_FULL_FLUSH) for data in (_START, b"0" * _MEGABYTE)]
        last = squeeze.compress(_END) + squeeze.flush()
        length = 10 + len(pieces[0]) + megabytes * len(pieces[1]) + len(last) + 8
        headers = (("Content-Encoding", "gzip"), ("Content-Length", str(length)))
        exchange.send(Reply(exchange.normal.status, headers=headers).head)
        exchange.send(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + pieces[0])
        for _ in range(megabytes):
            exchange.send(pieces[1])
        checksum, size = 0, 0
        for data in _json_of(len(_START) + megabytes * _MEGABYTE + len(_END)):
            checksum, size = zlib.crc32(data, checksum), size + len(data)
        exchange.send(last + checksum.to_bytes(4, "little") + (size % (1 << 32)).to_bytes(4, "little"))

    return Fault("gzip_bomb", act)


def nested_gzip(times: int) -> Fault:
    """Return a fault that compresses the normal answer several times and labels it correctly."""

    def act(exchange: Exchange) -> None:
        packed = exchange.normal.body
        for _ in range(times):
            packed = gzip.compress(packed)
        headers = (("Content-Encoding", ", ".join(["gzip"] * times)),)
        exchange.reply(Reply(exchange.normal.status, packed, headers))

    return Fault("nested_gzip", act)


def _endless(exchange: Exchange) -> None:
    exchange.send(Reply(exchange.normal.status, headers=(("Transfer-Encoding", "chunked"),)).head)
    exchange.send(b"%x\r\n%b\r\n" % (len(_START), _START))
    chunk = b"10000\r\n" + b"0" * 65536 + b"\r\n"
    while True:
        exchange.send(chunk)


ENDLESS = Fault("endless", _endless)
"""A chunked body without an end, sent as fast as the client reads it."""


def huge_header(size: int = 1_000_000) -> Fault:
    """Return a fault that answers normally, but with a header value of this size."""
    return _with_headers("huge_header", {"X-Huge": "0" * size})


def many_headers(count: int = 10_000) -> Fault:
    """Return a fault that answers normally, but with this number of headers."""
    return _with_headers("many_headers", {f"X-{number}": "0" for number in range(count)})


def _with_headers(name: str, headers: Mapping[str, str]) -> Fault:
    return Fault(name, lambda exchange: exchange.reply(exchange.normal._replace(headers=tuple(headers.items()))))


MALFORMED_HEADER = Fault(
    "malformed_header",
    lambda exchange: exchange.send(exchange.normal.head[:-2] + b"no colon\r\n\r\n" + exchange.normal.body),
)
"""The normal answer with an invalid line among its headers: urllib3 logs a warning with the whole URL."""


# Answers that are incomplete, late or not HTTP


def cut(part: Literal["status", "headers", "body"], *, reset: bool = False) -> Fault:
    """Return a fault that closes or resets in the middle of a part; Content-Length is that of the whole body."""

    def act(exchange: Exchange) -> None:
        head, content = exchange.normal.head, exchange.normal.body
        parts = {
            "status": head[:10],
            "headers": head[: len(head) // 2],
            "body": head + content[: len(content) // 2],
        }
        exchange.send(parts[part])
        exchange.close(reset=reset)

    return Fault(f"{'reset' if reset else 'cut'}_{part}", act)


def raw(data: bytes) -> Fault:
    """Return a fault that sends these bytes unchanged, and closes the connection."""

    def act(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.close()

    return Fault("raw", act)


def drip(part: Literal["headers", "body"], *, every: float = 0.05) -> Fault:
    """Return a fault that answers normally, but sends single bytes, every `every` seconds, from this part on."""

    def act(exchange: Exchange) -> None:
        head, content = exchange.normal.head, exchange.normal.body
        at_once, slowly = (head, content) if part == "body" else (b"", head + content)
        exchange.send(at_once)
        for byte in slowly:
            exchange.send(bytes([byte]))
            exchange.pause(every)

    return Fault(f"drip_{part}", act)


def hang(then: Fault = OK) -> Fault:
    """Return a fault that reads the request and sends nothing until `server.release()`; then `then` acts."""

    def act(exchange: Exchange) -> None:
        exchange.hang()
        then.act(exchange)

    return Fault("hang", act)


def _hang_and_close(exchange: Exchange) -> None:
    exchange.hang()
    exchange.close()


def _answer_and_close(exchange: Exchange) -> None:
    exchange.reply(exchange.normal)
    exchange.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

INVALID_CHUNK = replace(raw(CHUNKED + b"zz\r\n{}\r\n"), name="invalid_chunk")
NOT_HTTP = replace(raw(b"\0\1\2 this is no HTTP\r\n\r\n"), name="not_http")
CLOSE_AFTER_READ = Fault("close_after_read", lambda exchange: exchange.close())
RESET_AFTER_READ = Fault("reset_after_read", lambda exchange: exchange.close(reset=True))
RESET_BEFORE_READ = Fault("reset_before_read", lambda exchange: exchange.close(reset=True), Stage.READABLE)
HANG_BEFORE_READ = Fault("hang_before_read", _hang_and_close, Stage.READABLE)
OK_THEN_CLOSE = Fault("ok_then_close", _answer_and_close)
"""The normal answer; the server then closes the connection without announcing it."""

CLOSE_IN_HANDSHAKE = Fault("close_in_handshake", lambda exchange: exchange.close(), Stage.CONNECTED)
RESET_IN_HANDSHAKE = Fault("reset_in_handshake", lambda exchange: exchange.close(reset=True), Stage.CONNECTED)
HANG_IN_HANDSHAKE = Fault("hang_in_handshake", _hang_and_close, Stage.CONNECTED)
PLAIN_TEXT = replace(
    raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), name="plain_text", stage=Stage.CONNECTED
)
"""These four act before TLS, once per connection, and record no request: tests read `server.connections`."""

RETRY_AFTER: dict[str, str | timedelta | None] = {
    "absent": None,
    "zero": "0",
    "seconds": "1",
    "date": timedelta(seconds=2),
    "past": timedelta(days=-1),
    "far": timedelta(days=1),
    "huge": "99999999999999999999",
    "negative": "-1",
    "fraction": "0.5",
    "garbage": "soon",
    "blank": "",
}
"""A value of each kind of Retry-After, for `too_many`."""


# Faults of a relay before or after it forwards a request; except for the refusals, the client cannot tell which


def before(name: str, fault: Fault) -> Fault:
    """Return the fault for a relay that does not forward the request: Twilio never receives it."""
    return replace(fault, name=f"{name}_before", forwards=False)


def after(name: str, fault: Fault) -> Fault:
    """Return the fault for a relay that forwards the request first: Twilio carries it out."""
    return replace(fault, name=f"{name}_after", forwards=True)


def _drip_all_but_the_end(exchange: Exchange) -> None:
    whole = exchange.normal.head + exchange.normal.body
    for byte in whole[:-1]:
        exchange.send(bytes([byte]))
        exchange.pause(0.05)
    exchange.close()


AMBIGUOUS: dict[str, Fault] = {
    **{str(code): status(code) for code in (500, 502, 503, 504, 408)},
    "302": redirect(302, "/elsewhere"),
    "reset": RESET_AFTER_READ,
    "close": CLOSE_AFTER_READ,
    "hang": Fault("hang", _hang_and_close),
    "drip": Fault("drip", _drip_all_but_the_end),
    "truncated": cut("body"),
    "bad_json": body("invalid"),
    "no_sid": body("no_sid"),
    "html": html(200),
    "kill": Fault("kill", lambda exchange: exchange.kill()),
}
"""Faults that are named with `_before` or `_after`, as `fault=500_after`; `kill` kills the client's process."""

REFUSALS: dict[str, Fault] = {
    "429": too_many(),
    "429_retry": too_many("1"),
    "21611": QUEUE_FULL,
    "21211": status(400, twilio_code=21211),
    "21610": OPTED_OUT,
    "401": UNAUTHORIZED,
    "403": status(403),
}
"""Faults that are named with `_before` only: their answers state that the request was not carried out."""

NAMED: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        OK, UNAUTHORIZED, OPTED_OUT, QUEUE_FULL, NOT_FOUND, NO_CONTENT, ENDLESS, INVALID_CHUNK, NOT_HTTP,
        CLOSE_AFTER_READ, RESET_AFTER_READ, RESET_BEFORE_READ, HANG_BEFORE_READ, OK_THEN_CLOSE, hang(),
        huge(50), gzip_bomb(), nested_gzip(3), huge_header(), many_headers(), MALFORMED_HEADER,
        drip("headers"), drip("body"),
        *(status(code) for code in (300, 400, 401, 403, 404, 408, 409, 422, 429, 500, 501, 502, 503, 504)),
        *(html(code) for code in (200, 201, 403, 404, 500, 502, 503, 504)),
        *(replace(too_many(value), name=f"status_429_{kind}") for kind, value in RETRY_AFTER.items()),
        *(cut(part, reset=reset) for part in ("status", "headers", "body") for reset in (False, True)),
        *(body(name) for name in BODIES),
        *(variant for name, fault in AMBIGUOUS.items() for variant in (before(name, fault), after(name, fault))),
        *(before(name, fault) for name, fault in REFUSALS.items()),
    )
}  # fmt: skip
"""The faults that a request can name, as `fault=status_503`; a test can add others to `server.named`."""
