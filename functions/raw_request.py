"""Make any request to the connection's own account at Twilio."""

import base64
import binascii
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

import msgspec
from msgspec import Meta
from twilio_connector.api.client import MAX_BYTES, Answer, Failure, Retries, Twilio
from twilio_connector.api.redaction import Redaction
from twilio_connector.api.retry_policy import READ_ONLY_METHODS, FailureKind
from twilio_connector.backoff import backoff
from twilio_connector.errors import ConnectorError, Fault, InvalidInputError
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import lambda_handler
from twilio_connector.validation.model import INVALID, Flag, Input

ACCOUNT_VARIABLE = "$TWILIO_ACCOUNT_SID"

# No dot segments, no empty segments, and no character that a parser may interpret.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))(?:[A-Za-z0-9._~+:,=-]++|%[0-9A-Fa-f]{2})++)++")
_MAX_URL = 32_768  # characters
_MAX_HEADERS = 100  # servers take no more
_ENCODED_TRAP = re.compile(r"[\x00-\x20\x7f./\\%?#@;]")
_ACCOUNT = re.compile(r"/Accounts/(AC[0-9a-fA-F]{32})(?:\.json|/.+)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")
# Headers for credentials, framing, the host, another method or path, and the next hop.
_REFUSED_HEADERS = re.compile(
    r"authorization|cookie2?|host|content-length|transfer-encoding|connection|keep-alive|expect|te|trailer|upgrade"
    r"|proxy-.*|x-forwarded-.*|forwarded|via|accept-encoding|x-(http-)?method(-override)?|x-host"
    r"|x-(original|rewrite)-.*",
    re.IGNORECASE,
)
_JSON_TYPE = re.compile(r"application/([a-z0-9.-]+\+)?json\b", re.IGNORECASE)
# https://www.twilio.com/docs/messaging/api/media-resource: a GET of the media itself is redirected there.
_MEDIA = re.compile(r"https://([a-z0-9-]+\.)*twiliocdn\.com/[!-~]*")
# RFC 9110, 7.6.1: headers of one connection, here between Twilio and the function.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_TEXTUAL = re.compile(r"text/|application/(?:[a-z0-9.-]+\+)?(?:json|xml)\b", re.IGNORECASE)
_MAX_BINARY_BYTES = 4_500_000  # Base64 makes a third more of it, and a function returns at most 6 MB


_PAIRS_RULE = "must have texts, numbers, booleans or lists of them as values"


class Pairs(list[tuple[str, str]]):
    """Names with values, from an object or a list of `{"key", "value"}` where a name repeats."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Write numbers and booleans as JSON does."""
        pairs = cls()
        items = _items(value)
        for key, content in items:
            for single in content if isinstance(content, list) else [content]:
                if not isinstance(key, str) or not isinstance(single, (str, int, float, bool)):
                    raise ValueError(_PAIRS_RULE)  # noqa: TRY004 msgspec turns ValueError into a fault
                pairs.append((key, single if isinstance(single, str) else msgspec.json.encode(single).decode()))
        return pairs


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Return names with values; raises ValueError if the value has neither of the two shapes."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list) and all(map(_is_pair, value)):
        return [(item["key"], item["value"]) for item in value]
    raise ValueError('must be an object, or a list of {"key", "value"}')


def _is_pair(item: object) -> bool:
    return isinstance(item, dict) and item.keys() == {"key", "value"}


class Headers(dict[str, str]):
    """Headers that the caller may set."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Refuse those that carry credentials, framing or the host."""
        headers: dict[str, list[str]] = {}
        if isinstance(value, (dict, list)) and len(value) > _MAX_HEADERS:
            raise ValueError(f"must have at most {_MAX_HEADERS} headers")
        for name, content in Pairs.parse(value):
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(content):
                raise ValueError("must have header names, and values of visible ASCII characters")
            if _REFUSED_HEADERS.fullmatch(name.replace("_", "-")):  # servers may read _ as -
                raise ValueError("must not have headers for credentials, cookies, framing, hops or the host")
            headers.setdefault(name.lower(), []).append(content)
        return cls({name: ", ".join(contents) for name, contents in headers.items()})


class Files(list[tuple[str, bytes]]):
    """File contents by field name, from an object or a list of `{"key", "value"}` where a name repeats."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Decode Base64."""
        message = 'must have texts or {"base64": "…"} as values'
        files = cls()
        for name, content in _items(value):
            match name, content:
                case str(), str():
                    files.append((name, content.encode()))
                case str(), {"base64": str(encoded)} if len(content) == 1:
                    try:
                        files.append((name, base64.b64decode(encoded, validate=True)))
                    except (binascii.Error, ValueError):
                        raise ValueError(message) from None
                case _:
                    raise ValueError(message)
        return files


class FileNames(list[tuple[str, str]]):
    """File names by field name, from an object or a list of `{"key", "value"}` where a name repeats."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Take texts only."""
        names = _items(value)
        if not all(isinstance(part, str) for pair in names for part in pair):
            raise ValueError("must have texts as values")
        return cls(names)


# msgspec takes one bound of a kind, so this one cannot be a narrower Milliseconds.
Patience = Annotated[int, Meta(ge=1, le=900_000, description="must be a whole number of milliseconds from 1 to 900000")]
Milliseconds = Annotated[int, Meta(ge=0, le=900_000, description="must be a whole number of milliseconds up to 900000")]


class RawRequest(Input, frozen=True, kw_only=True):
    """A request; `url` is a path below `https://api.twilio.com/2010-04-01`."""

    url: Annotated[
        str, Meta(max_length=_MAX_URL, description=f"must be text, a path of at most {_MAX_URL:,} characters")
    ]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "LINK", "UNLINK", "PURGE"]
    data: str | dict[str, Any] | None = None
    form_data: Pairs | None = None
    file_data: Files | None = None
    file_data_file_names: FileNames | None = None
    query_parameters: Pairs | None = None
    headers: Headers | None = None
    response_type: Literal["json", "text", "binary"] = "json"
    timeout_ms: Patience = 10_000
    max_retry_count: Annotated[int, Meta(ge=0, le=100, description="must be a whole number from 0 to 100")] = 0
    retry_delay_ms: Milliseconds = 0
    retry_on_all_errors: Flag = False
    use_exponential_backoff: Flag = False

    @property
    def read_only(self) -> bool:
        """Whether the method changes nothing, by HTTP's rules."""
        return self.method in READ_ONLY_METHODS

    @classmethod
    def cross_field_faults(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield what is wrong about the URL, and bodies that exclude each other."""
        if isinstance(url := given.get("url"), str):
            path = url.replace(ACCOUNT_VARIABLE, f"AC{'0' * 32}")
            if not _is_safe(path) or not _ACCOUNT.fullmatch(path):
                yield Fault("url", _URL_RULE)
        multipart = [name for name in ("form_data", "file_data") if name in given]
        if "data" in given:
            for name in multipart:
                yield Fault(name, "cannot be combined with data")
        headers, data = given.get("headers"), given.get("data")
        if multipart and isinstance(headers, Headers) and "content-type" in headers:
            yield Fault("headers", "must not have Content-Type with form_data or file_data, which set it")
        if isinstance(data, dict) and not _is_json(headers):
            try:
                Pairs.parse(data)
            except ValueError as error:
                yield Fault("data", f"{error}, unless headers have a JSON Content-Type")
        if isinstance(names := given.get("file_data_file_names"), FileNames):
            files = given.get("file_data", Files())
            if files is not INVALID and Counter(name for name, _ in names) - Counter(name for name, _ in files):
                yield Fault("file_data_file_names", "names a file that is not in file_data")

    def path(self, twilio: Twilio) -> str:
        """Return the path; raises InvalidInputError if it belongs to another account."""
        path = self.url.replace(ACCOUNT_VARIABLE, twilio.connection.account_sid)
        account = _ACCOUNT.fullmatch(path)
        if account is None or account[1] not in twilio.connection.account_sids:
            raise InvalidInputError(
                Fault("url", "belongs to an account other than the connection's own and its subaccount_sids")
            )
        return path

    def content(self) -> dict[str, Any]:
        """Return the body as `Twilio.request` takes it."""
        headers = dict(self.headers or {})
        if isinstance(self.data, dict) and _is_json(headers):
            return {"headers": headers, "body": msgspec.json.encode(self.data)}
        if isinstance(self.data, dict):
            return {"headers": headers, "form": Pairs.parse(self.data)}
        if self.data is not None:
            # The only kind of body that Twilio documents for this API.
            headers.setdefault("content-type", "application/x-www-form-urlencoded")
            return {"headers": headers, "body": self.data.encode()}
        if self.form_data is None and self.file_data is None:
            return {"headers": headers}
        # Where a field repeats, its files have their names in the same order.
        names: dict[str, deque[str]] = {}
        for field, name in self.file_data_file_names or ():
            names.setdefault(field, deque()).append(name)
        files: list[tuple[str, Any]] = [(name, (None, value)) for name, value in self.form_data or ()]
        for field, content in self.file_data or ():
            files.append((field, (names[field].popleft() if names.get(field) else field, content)))
        return {"headers": headers, "files": files}

    def retries(self) -> Retries:
        """Return the caller's own choice of retries."""
        return Retries(
            limit=self.max_retry_count,
            when=self._may_retry,
            delay=backoff if self.use_exponential_backoff else lambda _: self.retry_delay_ms / 1000,
        )

    def _may_retry(self, failure: Failure) -> bool:
        if isinstance(failure.end, FailureKind):
            return failure.end not in {FailureKind.BAD_CERTIFICATE, FailureKind.TOO_LARGE}
        return self.retry_on_all_errors or failure.end >= 500  # noqa: PLR2004 HTTP's own number


_URL_RULE = (
    "must be a path that begins with /Accounts/ and the connection's account SID (or $TWILIO_ACCOUNT_SID), "
    "without host, query, fragment, empty or dot segments; parameters go into query_parameters"
)


@lambda_handler(RawRequest)
def handler(raw: RawRequest, twilio: Twilio, _: Caller) -> dict[str, Any]:
    """Return status, headers and data of a 2xx answer, and how many requests it took."""
    is_binary = raw.response_type == "binary"
    try:
        answer = twilio.request(
            raw.method,
            raw.path(twilio),
            query=raw.query_parameters or (),
            timeout=raw.timeout_ms / 1000,
            retries=raw.retries(),
            follow=_media(twilio) if is_binary and raw.method == "GET" else None,
            max_bytes=_MAX_BINARY_BYTES if is_binary else MAX_BYTES,
            **raw.content(),
        )
    except ConnectorError as error:
        if error.twilio and error.twilio.text:  # API callers get this text
            text = Redaction(twilio.connection.secrets).text(error.twilio.text)
            error.twilio = msgspec.structs.replace(error.twilio, text=text)
        raise
    redaction = Redaction(twilio.connection.secrets)
    result = {
        "status_code": answer.status,
        "headers": _headers(answer, redaction),
        "data": _data(answer, raw.response_type, redaction),
        "attempts": answer.attempts,
    }
    return result | {"is_base64_encoded": True} if is_binary else result


def _is_safe(path: str) -> bool:
    """Tell whether every parser reads this path as the same one."""
    encoded = re.findall(r"%[0-9A-Fa-f]{2}", path)
    trapped = any(_ENCODED_TRAP.fullmatch(unquote(byte)) for byte in encoded)
    return _PATH.fullmatch(path) is not None and not trapped


def _is_json(headers: object) -> bool:
    return isinstance(headers, dict) and _JSON_TYPE.match(headers.get("content-type", "")) is not None


def _media(twilio: Twilio) -> re.Pattern[str]:
    """Return the pattern of the media URLs to which Twilio redirects."""
    return re.compile(re.escape(twilio.api_url) + "/[!-~]*") if twilio.is_test_stack else _MEDIA


def _headers(answer: Answer, redaction: Redaction) -> dict[str, str]:
    """Return an answer's headers, without those of the connection to Twilio."""
    named = {name.strip().lower() for name in answer.headers.get("Connection", "").split(",")}
    headers = {name.lower(): redaction.text(value) for name, value in answer.headers.items()}
    return {
        name: value
        for name, value in headers.items()
        if name not in _HOP_BY_HOP | named and not name.startswith("proxy-auth")
    }


def _data(answer: Answer, response_type: str, redaction: Redaction) -> Any:
    if response_type == "binary":
        return base64.b64encode(_bytes(answer, redaction)).decode()
    text = answer.body.decode("utf-8", "replace")
    if response_type == "json":
        try:
            value = msgspec.json.decode(answer.body) if answer.body else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return redaction.json(value, text)
    return redaction.text(text)


def _bytes(answer: Answer, redaction: Redaction) -> bytes:
    """Return an answer's bytes, with secrets redacted if they are text."""
    if _TEXTUAL.match(answer.headers.get("Content-Type", "")):
        try:
            return redaction.text(answer.body.decode()).encode()
        except UnicodeDecodeError:
            pass
    return answer.body
