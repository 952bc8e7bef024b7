"""Twilio's webhook signature, as pure functions (https://www.twilio.com/docs/usage/webhooks/webhooks-security).

The signature is the Base64 of an HMAC-SHA1 over the URL and, for forms, every parameter sorted by name, name
and value one after the other with nothing between. Nothing here raises, whatever arrives.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qsl

_STANDARD_PORTS = {"https": "443", "http": "80"}
_URL = re.compile(r"(https?)://([^/?#]*)(.*)", re.DOTALL)
_PORT = re.compile(r":[0-9]*\Z")


def sign(url: str, fields: Mapping[str, Sequence[str]], token: str) -> bytes:
    """Return the signature that Twilio makes with an auth token.

    `fields` are the decoded fields of a form, with the values of each name; empty for GET and JSON, where the
    URL says it all. A name's values are signed once each and sorted, as Twilio's own libraries do.
    """
    digest = hmac.digest(_encode(token), _encode(signed_text(url, fields)), hashlib.sha1)
    return base64.b64encode(digest)


def signed_text(url: str, fields: Mapping[str, Sequence[str]]) -> str:
    """Return the text that is signed."""
    return url + "".join(name + value for name in sorted(fields) for value in sorted(set(fields[name])))


def verify(signature: str, urls: Iterable[str], fields: Mapping[str, Sequence[str]], tokens: Iterable[str]) -> bool:
    """Tell whether one of the tokens made this signature for one of the URLs.

    Each URL is tried without and with its standard port, since Twilio is not consistent about it.
    """
    given = _encode(signature)
    return any(
        hmac.compare_digest(sign(spelling, fields, token), given)
        for url in urls
        for spelling in spellings(url)
        for token in tokens
    )


def spellings(url: str) -> list[str]:
    """Return the ways in which Twilio may have written a URL when it signed it.

    Without fragment; without the user, then with it; without the standard port, then with it.
    """
    parts = _URL.fullmatch(url.partition("#")[0])
    if parts is None:
        return [url]
    scheme, authority, rest = parts.groups()
    user, at, host = authority.rpartition("@")
    port = f":{_STANDARD_PORTS[scheme]}"
    bare = host.removesuffix(port)
    hosts = [host] if _PORT.search(bare) else [bare, bare + port]
    return [f"{scheme}://{prefix}{host}{rest}" for prefix in dict.fromkeys(("", user + at)) for host in hosts]


def body_matches(query: str, body: bytes) -> bool:
    """Tell whether the query holds exactly one `bodySHA256`, the hash of these bytes."""
    named = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0].lower() == "bodysha256"]
    genuine = ("bodySHA256", hashlib.sha256(body).hexdigest())
    return len(named) == 1 and hmac.compare_digest(_encode("=".join(named[0])), _encode("=".join(genuine)))


def _encode(text: str) -> bytes:
    """Return UTF-8 bytes, of a lone surrogate too."""
    return text.encode("utf-8", "surrogatepass")
