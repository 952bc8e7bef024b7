"""Each pattern, and each field of each action, takes time that grows no faster than the input.

Times are processor time of this process, so that a busy machine does not change them.
"""

import ast
import importlib
import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

import get_sms
import list_sms
import pytest
import raw_request
import send_sms
from twilio_connector.errors import InvalidInputError
from twilio_connector.validation.model import Input, fields

from tests.conftest import DEPLOYED, module_name

SHORT, LONG = 10_000, 100_000  # characters
GROWTH = 12  # times as long, at most, for an input ten times as long
FLOOR = 0.002  # seconds; shorter times are too imprecise to compare

METHODS = {"match", "fullmatch", "search", "sub", "split", "findall", "finditer"}


def cost(run: Callable[[], object], floor: float = FLOOR) -> float:
    """Return the seconds of processor time of a call: the least of five, or the first below a floor.

    Coverage's tracer is off, because it slows down Python's lines but not the JSON reader.
    """
    times: list[float] = []
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        while len(times) < 5:
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
            if times[-1] < floor:
                return times[-1]
    finally:
        sys.settrace(tracer)
    return min(times)


# Patterns


class Anything(str):
    """A placeholder in a pattern for a value that is known only at run time."""

    __slots__ = ()

    def __getattr__(self, name: str) -> "Anything":
        """Return the placeholder itself for any attribute."""
        return self


class Names(dict[str, Any]):
    """The names of a module, and a placeholder for each name that is local to a function."""

    def __missing__(self, name: str) -> Any:
        """Return a built-in of this name, or a placeholder."""
        return getattr(__import__("builtins"), name, Anything("AC"))


class Found(NamedTuple):
    """A pattern in the source, and the methods that apply it."""

    where: str
    pattern: re.Pattern[str]
    methods: frozenset[str]


def patterns(path: Path) -> Iterator[Found]:
    """Yield the patterns of a module."""
    tree = ast.parse(path.read_text())
    names = Names(vars(importlib.import_module(module_name(path))))
    for node in (node for node in nodes(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(node.func)
        given = [keyword.value for keyword in node.keywords if keyword.arg == "pattern"]
        if re.fullmatch(rf"re\.({'|'.join(METHODS)}|compile)", function):
            given = node.args[:1]
        elif function not in {"Meta", "msgspec.Meta"}:
            continue
        for expression in given:
            flags = value(node.args[1], names) if function == "re.compile" and node.args[1:] else 0
            where = f"{path.name}:{node.lineno}"
            yield Found(where, re.compile(value(expression, names), flags), used(tree, node, function))


def value(expression: ast.expr, names: Names) -> Any:
    """Return the value of an expression in the source."""
    return eval(compile(ast.Expression(expression), "source", "eval"), names)  # noqa: S307 our own source


def used(tree: ast.Module, node: ast.Call, function: str) -> frozenset[str]:
    """Return the methods that apply a pattern: `search` in msgspec, or a default if the code shows none."""
    if function.endswith("Meta"):
        return frozenset({"search"})
    if function != "re.compile":
        return frozenset({function.removeprefix("re.")})
    names = [
        ast.unparse(target)
        for each in nodes(tree)
        if isinstance(each, ast.Assign) and each.value is node
        for target in each.targets
    ]
    methods = {method for name, method in attributes(tree) if name in names}
    return frozenset(methods & METHODS or {"fullmatch", "finditer"})


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """Return all nodes of a syntax tree."""
    return list(ast.walk(tree))


@cache
def attributes(tree: ast.Module) -> set[tuple[str, str]]:
    """Return the attributes that a module reads, each with the name of its object."""
    return {(ast.unparse(each.value), each.attr) for each in nodes(tree) if isinstance(each, ast.Attribute)}


FOUND = [found for path in DEPLOYED for found in patterns(path)]


def samples(tree: Any) -> list[str]:
    """Return characters that occur in a pattern."""
    characters: list[str] = []
    for code, value in tree:
        if code in {codes.LITERAL, codes.NOT_LITERAL}:
            characters.append(chr(value))
        elif code is codes.IN:
            for kind, inner in value:
                pair = inner if kind is codes.RANGE else [inner]
                characters += map(chr, pair) if kind in {codes.LITERAL, codes.RANGE} else [" ", "a", "0"]
        elif code is codes.ANY:
            characters += ["a"]
        else:
            characters += [one for part in parts(code, value) for one in samples(part)]
    return list(dict.fromkeys(characters))


def parts(code: Any, value: Any) -> list[Any]:
    """Return the patterns inside an element of a pattern."""
    if code in {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}:
        return [value[2]]
    if code is codes.SUBPATTERN:
        return [value[3]]
    if code is codes.BRANCH:
        return list(value[1])
    if code in {codes.ASSERT, codes.ASSERT_NOT}:
        return [value[1]]
    return [value] if code is codes.ATOMIC_GROUP else []


def shortest(tree: Any) -> str:
    """Return a short text that a pattern matches or nearly matches."""
    text = ""
    for code, value in tree:
        if code is codes.LITERAL:
            text += chr(value)
        elif code in {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}:
            text += shortest(value[2]) * max(value[0], 1)
        elif code in {codes.SUBPATTERN, codes.BRANCH, codes.ATOMIC_GROUP}:
            text += shortest(parts(code, value)[0])
        elif code in {codes.IN, codes.ANY, codes.NOT_LITERAL}:
            text += next((one for one in samples([(code, value)]) if re.fullmatch(r"\w", one)), "a")
    return text


def repeated(tree: Any) -> Iterator[str]:
    """Yield a text for the content of each repetition in a pattern."""
    for code, value in tree:
        if code in {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}:
            yield shortest(value[2])
        for part in parts(code, value):
            yield from repeated(part)


def hostile(pattern: re.Pattern[str], size: int) -> Iterator[str]:
    """Yield texts that match for a long stretch and then fail."""
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    characters = samples(tree)[:14]
    units = {*characters, *repeated(tree), *(one + other for one in characters for other in characters[:6])} - {""}
    whole = shortest(tree)
    for unit in sorted(units):
        text = unit * (size // len(unit))
        for before in {"", whole, whole[: len(whole) // 2]}:
            yield before + text + "\x00"
        yield text + whole


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.where)
def test_no_pattern_backtracks(found: Found) -> None:
    """A text ten times as long takes at most twelve times as long to match, for each hostile text."""
    for short, long in zip(hostile(found.pattern, SHORT), hostile(found.pattern, LONG), strict=True):
        for method in found.methods:
            apply = getattr(found.pattern, method)
            arguments = ("",) if method == "sub" else ()

            def run(
                text: str, apply: Any = apply, arguments: tuple[str, ...] = arguments, method: str = method
            ) -> None:
                result = apply(*arguments, text)
                if method == "finditer":
                    deque(result, maxlen=0)

            # A pattern that backtracks takes minutes for the long text, so the short text is measured first.
            quick = cost(lambda: run(short))  # noqa: B023 called here
            assert quick < 0.1, f"{method} of {len(short)} characters that begin with {short[:20]!r}"
            slow = cost(lambda: run(long), GROWTH * max(quick, FLOOR))  # noqa: B023 called here
            assert slow <= GROWTH * max(quick, FLOOR), f"{method} of texts that begin with {long[:20]!r}"


def test_a_pattern_that_backtracks_is_found() -> None:
    """The hostile texts expose patterns that are known to be slow."""
    for slow in (r"\s*\+?[0-9\s()]+", r"(a+)+b", r"[^?#]*?/webhook", r"(\w+\s*)+:"):
        pattern = re.compile(slow)
        apply = pattern.search if "webhook" in slow else pattern.fullmatch
        sizes = (8, 16) if slow.endswith((")+b", ")+:")) else (200, 2_000)
        short = max(cost(lambda: apply(text), 0) for text in hostile(pattern, sizes[0]))  # noqa: B023 called here
        least = 3 * short * sizes[1] / sizes[0]
        assert any(cost(lambda: apply(text), 1) > least for text in hostile(pattern, sizes[1])), slow  # noqa: B023


def test_the_patterns_are_found() -> None:
    """The search finds all patterns: compiled ones, those used at once, and those in the types of inputs."""
    files = {found.where.partition(":")[0] for found in FOUND}

    assert {"phone_numbers.py", "model.py", "send_sms.py", "raw_request.py", "request.py", "redaction.py"} <= files
    assert len(FOUND) > 40
    written = sum(len(re.findall(r"\bre\.compile\(|\bpattern=r", path.read_text())) for path in DEPLOYED)
    assert written <= len(FOUND)


# Fields


ACTIONS: dict[str, tuple[type[Input], dict[str, Any]]] = {
    "send_sms": (
        send_sms.SendSms,
        {"to": "+15558675309", "messaging_service_sid": "MG" + "0" * 32, "content_sid": "HX" + "0" * 32},
    ),
    "get_sms": (get_sms.GetSms, {"message_sid": "SM" + "0" * 32}),
    "list_sms": (list_sms.ListSms, {}),
    "raw_request": (raw_request.RawRequest, {"url": "/Accounts/$TWILIO_ACCOUNT_SID.json", "method": "POST"}),
}

TEXTS = ["a", "0", " ", "0 ", "(", "+", "-", "+1 ", "/", "/a", "%41", ".", "a.", "\u00e9", "\u2068", "\uff11", "\u0661"]
TEXTS += ['"', "\\", "https://a/", "whatsapp:", "tel:", "SM0", "2026-01-01", "=", "\u00b9", "A" * 40 + " "]


@cache
def values(size: int) -> list[tuple[str, Any]]:
    """Return large values of all kinds, each with the name of its kind."""
    return list(_values(size))


def _values(size: int) -> Iterator[tuple[str, Any]]:
    for text in TEXTS:
        yield f"text {text[:10]!a}", text * (size // len(text))
    yield "digits", int("9" * 4000)  # Python's JSON reader takes no longer numbers
    yield "texts", ["a"] * (size // 5)
    yield "URLs", ["https://example.com/a"] * (size // 25)
    yield "lists", [[]] * (size // 4)
    yield "object", {f"k{number}": "v" for number in range(size // 14)}
    yield "numbers", {f"k{number}": number for number in range(size // 14)}
    yield "pairs", [{"key": "a", "value": "b"}] * (size // 28)
    yield "headers", [{"key": f"x-{number}", "value": "b"} for number in range(size // 32)]
    yield "files", [{"key": "a", "value": {"base64": "QUFB"}}] * (size // 45)
    yield "deep", deep(size // 2 if size < 2000 else 900)


def deep(depth: int) -> list[Any]:
    """Return a list that is nested to this depth."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def parse(kind: type[Input], payload: dict[str, Any]) -> None:
    """Parse an input, and ignore the error if it is invalid."""
    with suppress(InvalidInputError):
        kind.parse(payload)


CASES = [(action, name) for action, (kind, _) in ACTIONS.items() for name in [*fields(kind), "unknown"]]


# Inputs that may take more than twice the time of Python's JSON reader: the factor, and the reason.
DEARER = {
    "one by one": (10, "each value is checked, and written as text, by itself, and Python takes a call for each"),
    "digits": (6, "a number of 4,000 digits is compared with bounds, and written as text, which is as dear as to read"),
    "word": (40, "msgspec writes the wrong word into the text of an error, of which only the type is used"),
}
OF_PAIRS = {"data", "form_data", "file_data", "file_data_file_names", "query_parameters", "headers"}
OF_WORDS = {"risk_check", "content_retention", "address_retention", "traffic_type", "on_unknown"}
OF_WORDS |= {"method", "response_type"}
BY_FIELD = dict.fromkeys(OF_PAIRS, "one by one") | dict.fromkeys(OF_WORDS, "word")
WHATEVER = 0.0003  # seconds that an input of any size may take


def is_cheap(action: str, name: str, made_of: str, short: Any, long: Any) -> bool:
    """Return whether a long value of a field stays within its allowed time."""
    kind, rest = ACTIONS[action]
    slow = cost(lambda: parse(kind, rest | {name: long}), WHATEVER)
    if slow <= WHATEVER:  # true of most fields, so nothing else is measured
        return True
    dearer = BY_FIELD.get(name) or ("digits" if made_of == "digits" else "")
    factor, _ = DEARER[dearer] if dearer else (2, "")
    text = json.dumps(rest | {name: long}, ensure_ascii=False)
    return slow <= GROWTH * max(
        FLOOR, cost(lambda: parse(kind, rest | {name: short}), 0)
    ) and slow <= WHATEVER + factor * cost(lambda: json.loads(text), 0)


@pytest.mark.parametrize(("action", "name"), CASES)
def test_no_field_is_slow(action: str, name: str) -> None:
    """A value ten times as large takes at most twelve times as long.

    It takes at most twice the time of Python's JSON reader, or the factor in `DEARER`.
    """
    parse(*ACTIONS[action])  # load what is loaded only once
    for (made_of, short), (_, long) in zip(values(SHORT), values(LONG), strict=True):
        assert any(is_cheap(action, name, made_of, short, long) for _ in range(10)), made_of


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("source", ["payload", "text"])
def test_no_number_of_names_is_slow(action: str, source: str) -> None:
    """Any number of unknown names takes linear time.

    The error names a few of them, because the search for the name that each may mean takes some milliseconds.
    """
    kind, rest = ACTIONS[action]

    def run(size: int) -> None:
        names = {f"{'mesage' * 5}{'x' * (number % 9)}{'y' * (number // 9)}": ["x"] for number in range(size // 40)}
        with suppress(InvalidInputError):
            kind.parse(rest | names) if source == "payload" else kind.parse(rest, names)

    assert cost(lambda: run(LONG)) <= GROWTH * max(cost(lambda: run(SHORT)), FLOOR)
