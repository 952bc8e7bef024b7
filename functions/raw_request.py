"""Make any request to the connection's own account at Twilio."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

import msgspec
from msgspec import Meta
from twilio_connector.client import MAX_BYTES, Answer, Failure, Retries, Twilio
from twilio_connector.entrypoint import entrypoint
from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.inputs import INVALID, Flag, Input
from twilio_connector.retries import READ_ONLY_METHODS, End, backoff

ACCOUNT_VARIABLE = "$TWILIO_ACCOUNT_SID"

# No dot segments, no empty segments, and no character that any parser reads as something else than itself.
_PATH = re.compile(r"(/(?!\.{1,2}(/|\Z))([A-Za-z0-9._~+:,=-]|%[0-9A-Fa-f]{2})+)+")
_ENCODED_TRAP = re.compile(r"[\x00-\x20\x7f./\\%?#@;]")
_ACCOUNT = re.compile(r"/Accounts/(AC[0-9a-fA-F]{32})(?:\.json|/.+)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")
# Credentials, framing, the host, what takes the place of method or path, and what speaks to the next hop only.
_REFUSED_HEADERS = re.compile(
    r"authorization|cookie2?|host|content-length|transfer-encoding|connection|keep-alive|expect|te|trailer|upgrade"
    r"|proxy-.*|x-forwarded-.*|forwarded|via|accept-encoding|x-(http-)?method(-override)?|x-host"
    r"|x-(original|rewrite)-.*",
    re.IGNORECASE,
)
_JSON_TYPE = re.compile(r"application/([a-z0-9.-]+\+)?json\b", re.IGNORECASE)
# https://www.twilio.com/docs/messaging/api/media-resource: a GET of the media itself is redirected there.
_MEDIA = re.compile(r"https://([a-z0-9-]+\.)*twiliocdn\.com/[!-~]*")
_MAX_BINARY_BYTES = 4_500_000  # Base64 makes a third more of it, and a function returns at most 6 MB


_PAIRS_RULE = "must have texts, numbers, booleans or lists of them as values"


class Pairs(list[tuple[str, str]]):
    """Names with values, from an object or a list of `{"key", "value"}` where a name repeats."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Write numbers and booleans as JSON does."""
        if isinstance(value, dict):
            items = list(value.items())
        elif isinstance(value, list) and all(map(_is_pair, value)):
            items = [(item["key"], item["value"]) for item in value]
        else:
            raise ValueError('must be an object, or a list of {"key", "value"}')
        pairs = cls()
        for key, content in items:
            for single in content if isinstance(content, list) else [content]:
                if not isinstance(key, str) or not isinstance(single, (str, int, float, bool)):
                    raise ValueError(_PAIRS_RULE)  # noqa: TRY004 msgspec turns ValueError into a fault
                pairs.append((key, single if isinstance(single, str) else msgspec.json.encode(single).decode()))
        return pairs


def _is_pair(item: object) -> bool:
    return isinstance(item, dict) and item.keys() == {"key", "value"}


class Headers(dict[str, str]):
    """Headers that the caller may set."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Refuse those that carry credentials, framing or the host."""
        headers = cls()
        for name, content in Pairs.parse(value):
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(content):
                raise ValueError("must have header names, and values of visible ASCII characters")
            if _REFUSED_HEADERS.fullmatch(name.replace("_", "-")):  # which servers take for the same
                raise ValueError("must not have headers for credentials, cookies, framing, hops or the host")
            headers[name.lower()] = f"{headers[name.lower()]}, {content}" if name.lower() in headers else content
        return headers


class Files(dict[str, bytes]):
    """File contents by field name."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Decode Base64."""
        message = 'must be an object of texts or {"base64": "…"}'
        if not isinstance(value, dict):
            raise ValueError(message)  # noqa: TRY004 a fault to msgspec
        files = cls()
        for name, content in value.items():
            match content:
                case str():
                    files[name] = content.encode()
                case {"base64": str(encoded)} if len(content) == 1:
                    try:
                        files[name] = base64.b64decode(encoded, validate=True)
                    except (binascii.Error, ValueError):
                        raise ValueError(message) from None
                case _:
                    raise ValueError(message)
        return files


# msgspec takes one bound of a kind, so this one cannot be a narrower Milliseconds.
Patience = Annotated[int, Meta(ge=1, le=900_000, description="must be a whole number of milliseconds from 1 to 900000")]
Milliseconds = Annotated[int, Meta(ge=0, le=900_000, description="must be a whole number of milliseconds up to 900000")]


class RawRequest(Input, frozen=True, kw_only=True):
    """A request; `url` is a path below `https://api.twilio.com/2010-04-01`."""

    url: Annotated[str, Meta(description="must be text")]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "LINK", "UNLINK", "PURGE"]
    data: str | dict[str, Any] | None = None
    form_data: Pairs | None = None
    file_data: Files | None = None
    file_data_file_names: Annotated[dict[str, str], Meta(description="must be an object of texts")] | None = None
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
        """Whether HTTP says that the method changes nothing."""
        return self.method in READ_ONLY_METHODS

    @classmethod
    def combinations(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield what is wrong about the URL, and bodies that exclude each other."""
        if isinstance(url := given.get("url"), str) and not _is_safe(url.replace(ACCOUNT_VARIABLE, "AC0")):
            yield Fault("url", _URL_RULE)
        multipart = [name for name in ("form_data", "file_data") if name in given]
        if "data" in given:
            for name in multipart:
                yield Fault(name, "cannot go with data")
        headers, data = given.get("headers"), given.get("data")
        if multipart and isinstance(headers, Headers) and "content-type" in headers:
            yield Fault("headers", "must not have Content-Type with form_data or file_data, which set it")
        if isinstance(data, dict) and not _is_json(headers):
            try:
                Pairs.parse(data)
            except ValueError as error:
                yield Fault("data", f"{error}, unless headers have a JSON Content-Type")
        if isinstance(names := given.get("file_data_file_names"), dict):
            files = given.get("file_data", {})
            if files is not INVALID and not names.keys() <= files.keys():
                yield Fault("file_data_file_names", "names a file that is not in file_data")

    def path(self, twilio: Twilio) -> str:
        """Return the path; raises InvalidInputError where it is another account's."""
        path = self.url.replace(ACCOUNT_VARIABLE, twilio.connection.account_sid)
        account = _ACCOUNT.fullmatch(path)
        if account is None:
            raise InvalidInputError(Fault("url", _URL_RULE))
        if account[1] not in twilio.connection.account_sids:
            raise InvalidInputError(
                Fault("url", "is of another account than the connection's own and its subaccount_sids")
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
        names = self.file_data_file_names or {}
        files: list[tuple[str, Any]] = [(name, (None, value)) for name, value in self.form_data or ()]
        files += [(name, (names.get(name, name), value)) for name, value in (self.file_data or {}).items()]
        return {"headers": headers, "files": files}

    def retries(self) -> Retries:
        """Return the caller's own choice of retries."""
        return Retries(
            limit=self.max_retry_count,
            when=self._may_retry,
            delay=backoff if self.use_exponential_backoff else lambda _: self.retry_delay_ms / 1000,
        )

    def _may_retry(self, failure: Failure) -> bool:
        if isinstance(failure.end, End):
            return failure.end not in {End.BAD_CERTIFICATE, End.TOO_LARGE}
        return self.retry_on_all_errors or failure.end >= 500  # noqa: PLR2004 HTTP's own number


_URL_RULE = (
    "must be a path that begins with /Accounts/ and the connection's account SID (or $TWILIO_ACCOUNT_SID), "
    "without host, query, fragment, empty or dot segments; parameters go into query_parameters"
)


@entrypoint(RawRequest)
def handler(raw: RawRequest, twilio: Twilio) -> dict[str, Any]:
    """Return status, headers and data of a 2xx answer, and how many requests it took."""
    is_binary = raw.response_type == "binary"
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
    result = {
        "status_code": answer.status,
        "headers": dict(answer.headers),
        "data": _data(answer, raw.response_type),
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
    """Return the URLs of media, to which Twilio redirects."""
    return re.compile(re.escape(twilio.api_url) + "/[!-~]*") if twilio.is_test_stack else _MEDIA


def _data(answer: Answer, response_type: str) -> Any:
    if response_type == "binary":
        return base64.b64encode(answer.body).decode()
    if response_type == "json":
        try:
            return msgspec.json.decode(answer.body) if answer.body else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return answer.body.decode("utf-8", "replace")
