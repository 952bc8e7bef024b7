"""Which part of the URL differs from the one that was signed, where the token is right: a setting is wrong then."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple
from urllib.parse import urlsplit

from twilio_connector import signature
from twilio_connector.envelope import HttpRequest
from twilio_connector.signed_form import Fields

MAX_BYTES = 16 * 1024
"""Of a body: a larger one takes too long for a request that may be anybody's."""

_HOST_HEADERS = ("host", "x-forwarded-host", "x-original-host")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")
_WEBHOOK = "/webhook"


class _Url(NamedTuple):
    """The parts that a setting may get wrong, in the words of a log line."""

    scheme: str
    host: str
    prefix: str
    path: str
    query: str

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.host}{self.prefix}{self.path}{query}"


def difference(
    request: HttpRequest, expected_url: str, given: str, fields: Fields, tokens: Sequence[str]
) -> str | None:
    """Return what a person has to know of the URL for which a signature holds, or None where none is found.

    Of the request it names nothing but the host, which the signature vouches for.
    """
    if len(request.body) > MAX_BYTES:
        return None
    expected = _parts(expected_url)
    for candidate in _candidates(request, expected):
        if signature.verify(given, [str(candidate)], fields, tokens):
            named = zip(_Url._fields, candidate, expected, strict=True)
            parts = [name for name, signed, wanted in named if signed != wanted]
            return (
                f"the signature holds for a URL with another {' and '.join(parts)}"
                f" (signed for {candidate.scheme}, host {candidate.host}); check WebhookBaseUrl and the URL at Twilio"
            )
    return None


def _candidates(request: HttpRequest, expected: _Url) -> Iterator[_Url]:
    """Yield URLs that Twilio may have called: through another front door, or spelled otherwise at its end."""
    named = [request.headers.get(name, "") for name in _HOST_HEADERS]
    hosts = dict.fromkeys([expected.host, request.domain, *(host for host in named if _HOST.fullmatch(host))])
    prefixes = dict.fromkeys([expected.prefix, request.path.rpartition(_WEBHOOK)[0], ""])
    for scheme, host, prefix in product(("https", "http"), hosts, prefixes):
        yield expected._replace(scheme=scheme, host=host, prefix=prefix)
    for path, query in product((expected.path, f"{expected.path}/", _WEBHOOK), (expected.query, "")):
        yield expected._replace(path=path, query=query)


def _parts(url: str) -> _Url:
    parts = urlsplit(url)
    prefix, found, rest = parts.path.rpartition(_WEBHOOK)
    return _Url(parts.scheme, parts.netloc, prefix, found + rest, parts.query)
