"""Redaction of textual answers: of the connection's own secrets, and of auth tokens that Twilio returns."""

import base64
import re
import string
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

REDACTED = "[redacted]"
FIELD = "auth_token"
"""Twilio's field for an account's auth token in clear (https://www.twilio.com/docs/iam/api/account)."""

# In JSON, in JSON within JSON, and in XML.
_FIELD = re.compile(r'("auth_token\\*+"\s*+:\s*+\\*+"|<AuthToken>)((?:[^"\\<]|\\++u[0-9a-fA-F]{4})++)')
_SHORTEST = 8  # characters of Base64 that are enough to recognise a secret
_BASE64 = frozenset(string.ascii_letters + string.digits + "+/-_=")

_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def _json(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    return match[2] or "\\"


def _percent(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _entity(match: re.Match[str]) -> str:
    code = int(match[1], 16) if match[1] else int(match[2] or 0)
    return _ENTITIES[match[3]] if match[3] else chr(min(code, 0xFFFF))


type _Read = Callable[[re.Match[str]], str]

# The escapes of JSON, of URLs and forms, and of XML, applied once or several times. Secrets are unescaped too, since a
# secret may contain what looks like an escape.
_ESCAPES: tuple[tuple[re.Pattern[str], _Read], ...] = (
    (re.compile(r'\\++(?:u([0-9a-fA-F]{4})|(["/]))?'), _json),
    (re.compile(r"%(?:25)*([0-9a-fA-F]{2})"), _percent),
    (re.compile(r"&(?:amp;)*(?:#x([0-9a-fA-F]{1,6})|#([0-9]{1,7})|(amp|lt|gt|quot|apos));"), _entity),
)
_DEPTH = 3  # kinds of escape within one another


class _Layer(NamedTuple):
    """An unescaped text, and the places of its characters in the original text."""

    text: str
    places: list[int]
    sources: list[int]

    def source(self, place: int) -> int:
        """Return where the character at a place begins in the original text."""
        index = bisect_right(self.places, place) - 1
        return self.sources[index] + place - self.places[index]


class Redaction:
    """Replaces secrets in text, headers and JSON, escaped or not."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Take the secrets."""
        self._secrets = tuple(sorted(secrets))
        self._encoded = tuple(core for secret in self._secrets for core in _cores(secret))

    def text(self, text: str) -> str:
        """Return a text with `[redacted]` for each secret in it."""
        spans = sorted(self._spans(text))
        if not spans:
            return text
        parts: list[str] = []
        end = 0
        for start, stop in spans:
            if start >= end:
                parts += [text[end:start], REDACTED]
            end = max(end, stop)
        return "".join([*parts, text[end:]])

    def json(self, value: Any, text: str) -> Any:
        """Return the value of a JSON text with `[redacted]` for each secret, and for each `auth_token`."""
        if next(self._spans(text), None) is None and FIELD not in text:
            return value
        root = [value]
        pending: list[Any] = [root]
        while pending:  # no recursion: an answer may be nested deeper than Python's calls may be
            box = pending.pop()
            if isinstance(box, dict):
                items = [(self.text(key), item) for key, item in box.items()]
                box.clear()
                box.update({key: REDACTED if key == FIELD and item is not None else item for key, item in items})
            for key, item in box.items() if isinstance(box, dict) else enumerate(box):
                if isinstance(item, (dict, list)):
                    pending.append(item)
                elif not isinstance(item, bool) and item is not None:
                    written = str(item)
                    redacted = self.text(written)
                    box[key] = item if redacted == written else redacted
        return root[0]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where secrets begin and end."""
        return _found(text, self._secrets, self._encoded, _DEPTH, set())


def _found(
    text: str, secrets: Sequence[str], encoded: Sequence[str], depth: int, seen: set[int]
) -> Iterator[tuple[int, int]]:
    """Yield where secrets begin and end; `seen` has the hashes of the texts that were searched."""
    if hash(text) in seen:  # most orders of unescaping give the same text
        return
    seen.add(hash(text))
    yield from (match.span(2) for match in _FIELD.finditer(text))
    for secret in secrets:
        yield from ((start, start + len(secret)) for start in _places(text, secret))
    for core in encoded:
        yield from (_widened(text, start, start + len(core)) for start in _places(text, core))
    for escape, read in _ESCAPES if depth else ():
        if layer := _unescaped(text, escape, read):
            plain = [_plain(secret, escape, read) for secret in secrets]
            for start, stop in _found(layer.text, plain, encoded, depth - 1, seen):
                yield layer.source(start), layer.source(stop)


def _plain(text: str, escape: re.Pattern[str], read: _Read) -> str:
    layer = _unescaped(text, escape, read)
    return layer.text if layer else text


def _cores(secret: str) -> Iterator[str]:
    """Yield the Base64 characters that depend on the secret alone, as in a Basic credential."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret.encode()).decode()
        stop = len(encoded) - (4 if (offset + len(secret)) % 3 else 0)
        core = encoded[4 if offset else 0 : stop]
        if len(core) >= _SHORTEST:
            yield from {core, core.translate({ord("+"): "-", ord("/"): "_"})}


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + len(part))


def _widened(text: str, start: int, stop: int) -> tuple[int, int]:
    """Return a span with up to four more characters on each side, which hold bits of the secret too."""
    before = next((n for n in range(4) if start <= n or text[start - n - 1] not in _BASE64), 4)
    after = next((n for n in range(4) if stop + n >= len(text) or text[stop + n] not in _BASE64), 4)
    return start - before, stop + after


def _unescaped(text: str, escape: re.Pattern[str], read: _Read) -> _Layer | None:
    """Unescape one kind of escape where it stands for visible ASCII; None if the text has none."""
    parts: list[str] = []
    places, sources = [0], [0]
    end = length = 0
    for match in escape.finditer(text):
        character = read(match)
        start, stop = match.span()
        if stop - start == 1 or not "!" <= character <= "~":
            continue
        parts += (text[end:start], character)
        length += start - end
        places += (length, length + 1)
        sources += (start, stop)
        length += 1
        end = stop
    return _Layer("".join([*parts, text[end:]]), places, sources) if parts else None
