"""Twilio's webhook signature, as pure functions (https://www.twilio.com/docs/usage/webhooks/webhooks-security).

The signature is the Base64 of an HMAC over the URL and, for forms, every parameter sorted by name, name and value one
after the other with nothing between. No function here raises an error, whatever arrives.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

SETTINGS_HEADER = "x-twilio-webhooks-signature-settings"
"""Names the SharedKey and the algorithm, if Twilio did not sign with the auth token
(https://www.twilio.com/docs/usage/webhooks/webhook-shared-keys)."""

_ALGORITHMS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_STANDARD_PORTS = {"https": "443", "http": "80"}
_URL = re.compile(r"(https?)://([^/?#]*)(.*)", re.DOTALL)
_PORT = re.compile(r":[0-9]*\Z")


class Key(NamedTuple):
    """A signing key: an auth token, or the secret of a SharedKey with the algorithm of its setting."""

    secret: str
    algorithm: str = "sha1"


class SharedKey(NamedTuple):
    """Which SharedKey signed a request, and with which of `hashlib`'s algorithms."""

    sid: str
    algorithm: str


def shared_key(header: str) -> SharedKey | None:
    """Return the SharedKey in the settings header; None if it names no key or an unknown algorithm."""
    named = dict(part.strip().partition("=")[::2] for part in header.split(","))
    algorithm = _ALGORITHMS.get(named.get("algorithm", ""))
    return SharedKey(named["key"], algorithm) if algorithm and "key" in named else None


def sign(text: str, key: Key) -> bytes:
    """Return the signature of a text."""
    return base64.b64encode(hmac.digest(_encode(key.secret), _encode(text), key.algorithm))


def matches(given: str, text: str, key: Key) -> bool:
    """Tell whether the key made this signature for the text."""
    return hmac.compare_digest(sign(text, key), _encode(given))


def signed_text(url: str, fields: Mapping[str, Sequence[str]]) -> str:
    """Return the text that is signed.

    `fields` are the decoded fields of a form, with the values of each name. They are empty for GET and JSON, where
    Twilio signs the URL alone. A name's values are signed once each and sorted, as Twilio's own libraries do.
    """
    return url + "".join(name + value for name in sorted(fields) for value in sorted(set(fields[name])))


def spellings(url: str) -> list[str]:
    """Return the ways in which Twilio may have written a URL when it signed it.

    Without the user, then with it; without the standard port, then with it.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        return [url]
    scheme, authority, rest = parts.groups()
    user, at, host = authority.rpartition("@")
    port = f":{_STANDARD_PORTS[scheme]}"
    bare = host.removesuffix(port)
    hosts = [host] if _PORT.search(bare) else [bare, bare + port]
    return [f"{scheme}://{prefix}{host}{rest}" for prefix in dict.fromkeys(("", user + at)) for host in hosts]


def body_matches(query: str, body: bytes) -> bool:
    """Tell whether the query's `bodySHA256` is the hash of these bytes; it may repeat with the same value."""
    named = {pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0].lower() == "bodysha256"}
    return named == {("bodySHA256", hashlib.sha256(body).hexdigest())}


def _encode(text: str) -> bytes:
    """Return UTF-8 bytes, also for a lone surrogate."""
    return text.encode("utf-8", "surrogatepass")
