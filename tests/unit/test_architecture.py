"""The order of the packages: each imports only earlier ones, and docs/architecture.md shows that order."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.readme import ROOT, marked

LAYER = ROOT / "layers" / "twilio" / "twilio_connector"
PACKAGES = {
    "errors": "the error classes that callers see",
    "settings": "the stack's parameters, read from the environment",
    "clock": "the time, and waits: what tests set",
    "deadline": "the time that an invocation has left",
    "backoff": "pauses between attempts",
    "telemetry": "log lines and metrics",
    "http": "one HTTP exchange, which tells a request that was never sent from a lost response",
    "aws": "signed calls to AWS: DynamoDB, EventBridge, SQS, Secrets Manager",
    "validation": "typed inputs and phone numbers",
    "api": "one Twilio account: its credentials, its HTTP API, what may be retried",
    "invocation": "from any caller's event to a typed input, and back to the caller's answer",
    "messaging": "one message for each idempotency key, and what became of it",
    "publishing": "each event to the bus once, or to the buffer while the bus is down",
    "webhooks": "what Twilio posts: its signature, its text, its events, the reply",
    "polling": "Twilio's message list as a source of events, and how far it was read",
    "rotation": "the steps that replace a connection's credentials",
    "functions": "one file for each Lambda function, outside the layer",
}
"""The purpose of each package or module of the layer. Each imports only from itself and from earlier ones."""
ONLY = {
    ("publishing", "messaging"): set[str](),
    ("webhooks", "messaging"): {"messaging.idempotency"},
}
"""The only modules that a package may import from an earlier package. Without an entry, all are allowed."""

type Modules = dict[str, ast.Module]
"""Syntax trees by names such as `aws.client` and `functions.send_sms`; the layer's own `__init__` is left out."""


@cache
def modules() -> Modules:
    """Return the modules of the layer and the functions."""
    paths = {*LAYER.rglob("*.py")} - {LAYER / "__init__.py"}
    found = {name_of(path.relative_to(LAYER)): path for path in paths}
    found |= {f"functions.{path.stem}": path for path in (ROOT / "functions").glob("*.py")}
    return {name: ast.parse(path.read_text()) for name, path in sorted(found.items())}


def name_of(path: Path) -> str:
    """Return a module's name: `aws/client.py` is `aws.client`, and `aws/__init__.py` is `aws`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(module: ast.Module, known: set[str]) -> Iterator[str]:
    """Yield the modules of the layer and the functions that a module imports, also within its functions."""
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "name the package from its root"
            # A name that is imported from a package is one of its modules, or a name in its `__init__`.
            names = [f"{node.module}.{each.name}" for each in node.names]
        for name in names:
            inner = (
                name.removeprefix("twilio_connector.") if name.startswith("twilio_connector.") else f"functions.{name}"
            )
            yield from [each for each in (inner, inner.rpartition(".")[0]) if each in known][:1]


def graph(sources: Modules) -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    return {name: set(imports(module, set(sources))) for name, module in sources.items()}


def wrong(imported: dict[str, set[str]]) -> list[str]:
    """Return the imports that violate the order, as `module -> module`."""
    order = [*PACKAGES]
    found = []
    for name, others in imported.items():
        package = name.partition(".")[0]
        for other in sorted(others):
            of = other.partition(".")[0]
            only = ONLY.get((package, of), {other})
            if order.index(of) > order.index(package) or other not in only:
                found.append(f"{name} -> {other}")
    return found


def drawing() -> str:
    """Return the order of the packages as docs/architecture.md must draw it."""
    width = max(map(len, PACKAGES)) + 2
    lines = []
    for name, purpose in PACKAGES.items():
        lines.append(f"{name:{width}}{purpose}")
        for (package, other), some in ONLY.items():
            if package == name:
                lines.append(
                    f"{'':{width}}imports {f'only {", ".join(sorted(some))}' if some else 'nothing'} of {other}"
                )
    return "\n".join(lines) + "\n"


def test_imports_go_one_way() -> None:
    """A module imports only from its own package and from earlier packages."""
    assert [] == wrong(graph(modules()))


def test_modules_import_each_other_in_no_circle() -> None:
    """Modules have no circular imports, not even within a package.

    A person can therefore read every module after all the modules that it imports.
    """
    imported = graph(modules())

    assert set(imported) == set(TopologicalSorter(imported).static_order())


def test_a_name_means_one_thing() -> None:
    """Public classes, functions and types have unique names in all modules, except for the functions' `handler`."""
    defined = Counter(
        name
        for module in modules().values()
        for name in {
            node.name.id if isinstance(node, ast.TypeAlias) else node.name
            for node in module.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.TypeAlias)
        }
    )

    assert [] == sorted(
        name for name, count in defined.items() if count > 1 and name != "handler" and not name.startswith("_")
    )


def test_packages_are_those_that_exist() -> None:
    """Every existing package has a place in the order, and every place names an existing package."""
    assert sorted(PACKAGES) == sorted({name.partition(".")[0] for name in modules()})


def test_page_draws_the_order() -> None:
    """The page docs/architecture.md contains the drawing that this file generates."""
    (block,) = [each for each in marked("drawing") if each.page == "docs/architecture.md"]

    assert drawing() == block.text


# ---------------------------------------------------------------- tests of the checks above


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("errors", "settings"),
        ("http", "aws.client"),
        ("api.client", "invocation.caller"),
        ("messaging.sender", "publishing.event"),
        ("messaging.sender", "webhooks.request"),
        ("publishing.publisher", "messaging.idempotency"),
        ("publishing.publisher", "webhooks.events"),
        ("webhooks.request", "messaging.idempotency_store"),
        ("aws.client", "functions.send_sms"),
    ],
)
def test_wrong_import_is_seen(name: str, other: str) -> None:
    """An import of a later package, or of a module that is closed to the package, is reported."""
    assert [f"{name} -> {other}"] == wrong({name: {other}})


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("telemetry", "errors"),
        ("aws.dynamodb", "aws.client"),
        ("webhooks.request", "messaging.idempotency"),
        ("webhooks.events", "publishing.event"),
        ("polling.scan", "webhooks.events"),
        ("functions.webhook", "messaging.idempotency_store"),
    ],
)
def test_right_import_is_allowed(name: str, other: str) -> None:
    """An import of an earlier package or of the same package is allowed."""
    assert [] == wrong({name: {other}})


@pytest.mark.parametrize(
    "line",
    [
        "import twilio_connector.aws.client",
        "from twilio_connector.aws import client",
        "from twilio_connector.aws.client import call",
        "def lazy():\n    from twilio_connector.aws import client as aws_client",
    ],
)
def test_every_kind_of_import_is_read(line: str) -> None:
    """An import of a module, of a name in a module, or within a function is found."""
    assert ["aws.client"] == list(imports(ast.parse(line), {"aws", "aws.client", "http", "functions.send_sms"}))


def test_other_libraries_are_left_out() -> None:
    """An import of another library is ignored, even if a module of the layer has the same name."""
    assert [] == list(imports(ast.parse("import http.client\nfrom http import client"), {"http", "client"}))


def test_the_ways_through_the_code_are_those_of_the_code() -> None:
    """Every function under `Three ways` in docs/architecture.md exists in the module that the page names.

    No way has more than ten steps.
    """
    ways = (ROOT / "docs" / "architecture.md").read_text().partition("## Three ways")[2]
    named = re.findall(r"`(?:\w+\.)?(\w+)`,? \(`([\w./]+?)(?:\.py)?`\)", ways)
    defined = {
        (node.name, name)
        for name, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }

    assert len(named) > 30
    assert [] == [each for each in named if (each[0], each[1].replace("/", ".")) not in defined]
    assert max(map(int, re.findall(r"^(\d+)\. ", ways, re.MULTILINE))) <= 10


def test_time_comes_from_one_clock() -> None:
    """Only `clock` and `http` read the time: tests set the clock, and only socket timeouts use real seconds."""
    timed = {
        name
        for name, module in modules().items()
        for node in ast.walk(module)
        if (isinstance(node, ast.Import) and "time" in {each.name for each in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module == "time")
        or (
            isinstance(node, ast.Attribute)
            and node.attr in {"now", "today", "utcnow"}
            and "clock" not in ast.unparse(node)
        )
    }

    assert {"clock", "http"} == timed
