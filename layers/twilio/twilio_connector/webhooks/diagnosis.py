"""Finds which part of the URL differs from the signed one: if the secret is right, a setting is wrong."""

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple
from urllib.parse import urlsplit

from twilio_connector.invocation.events import HttpRequest

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


def candidates(request: HttpRequest, expected_url: str) -> Iterator[str]:
    """Yield URLs that Twilio may have called instead of the expected one, each once and likely ones first."""
    expected = _parts(expected_url)
    named = [request.headers.get(name, "") for name in _HOST_HEADERS]
    hosts = dict.fromkeys([expected.host, request.domain, *(host for host in named if _HOST.fullmatch(host))])
    prefixes = dict.fromkeys([expected.prefix, request.path.rpartition(_WEBHOOK)[0], ""])
    doors = list(product(hosts, prefixes))
    scheme = "http" if expected.scheme == "https" else "https"
    ends = product((expected.path, f"{expected.path}/", _WEBHOOK), (expected.query, ""))
    urls = [
        *(expected._replace(host=host, prefix=prefix) for host, prefix in doors),
        *(expected._replace(path=path, query=query) for path, query in ends),
        *(expected._replace(scheme=scheme, host=host, prefix=prefix) for host, prefix in doors),
    ]
    yield from (str(url) for url in dict.fromkeys(urls) if url != expected)


def difference(signed_url: str, expected_url: str) -> str:
    """Return which parts of the signed URL differ from the expected one, for the log.

    From the request it repeats only scheme and host, which are signed.
    """
    signed, expected = _parts(signed_url), _parts(expected_url)
    parts = [name for name, one, other in zip(_Url._fields, signed, expected, strict=True) if one != other]
    return (
        f"the signature is valid for a URL with another {' and '.join(parts)}"
        f" (signed for {signed.scheme}, host {signed.host}); check WebhookBaseUrl and the URL at Twilio"
    )


def _parts(url: str) -> _Url:
    parts = urlsplit(url)
    prefix, found, rest = parts.path.rpartition(_WEBHOOK)
    return _Url(parts.scheme, parts.netloc, prefix, found + rest, parts.query)
