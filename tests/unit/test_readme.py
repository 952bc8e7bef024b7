"""The README, as far as it can be compared with the project without running it."""

import json
import re
import shutil
import subprocess
from typing import Any

import get_sms
import list_sms
import msgspec
import pytest
import raw_request
import send_sms
import webhook
from msgspec import Struct
from twilio_connector import __version__, errors
from twilio_connector.connection import Connection, parse_secret

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.readme import BLOCKS, FENCE, README, ROOT, Block, marked, rows, section

SOURCES = "".join(
    path.read_text()
    for folder in ("functions", "layers/twilio/twilio_connector")
    for path in (ROOT / folder).glob("*.py")
)
ERRORS: dict[str, type[errors.ConnectorError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ConnectorError) and kind is not errors.ConnectorError
}
# The errors after which a send may have happened all the same, or that no send has.


def names(kind: type[Struct]) -> list[str]:
    """Return a struct's fields as users write them."""
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def test_every_block_is_marked() -> None:
    """Every fenced block says what becomes of it."""
    assert len(FENCE.findall(README)) == len(BLOCKS)


@pytest.mark.parametrize("block", marked("run", "parse"), ids=str)
def test_commands_parse(block: Block) -> None:
    """Every command is one that a shell understands."""
    bash = shutil.which("bash") or "bash"
    check = subprocess.run([bash, "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert (0, "") == (check.returncode, check.stderr)


@pytest.mark.parametrize("block", marked("answer", "file", "published", "save"), ids=str)
def test_json_parses(block: Block) -> None:
    """Every piece of JSON is an object."""
    assert isinstance(json.loads(block.text), dict)


@pytest.mark.parametrize("block", marked("file"), ids=str)
def test_shows_files(block: Block) -> None:
    """What the README shows of a file is what is in it."""
    assert json.loads((ROOT / block.argument).read_text()) == json.loads(block.text)


@pytest.mark.parametrize("block", marked("save"), ids=str)
def test_shows_a_connection(block: Block) -> None:
    """The secret that the README shows is a connection, with all that the webhook needs."""
    connection = parse_secret("default", block.text)

    assert json.loads(block.text)["account_sid"] == connection.account_sid
    assert connection.webhook_tokens


@pytest.mark.parametrize("block", marked("published"), ids=str)
def test_shows_a_published_event(block: Block, aws_wire: AwsWire, context: Context) -> None:
    """The event that the README shows is the one that the webhook makes of the request."""
    shown = json.loads(block.text)

    answer = webhook.handler(json.loads((ROOT / block.argument).read_text()), context)

    assert (200, "<Response/>") == (answer["statusCode"], answer["body"])
    assert shown == json.loads(aws_wire.entries[0]["Detail"]) | {"received_at": shown["received_at"]}
    assert f"detail-type `{aws_wire.entries[0]['DetailType']}`" in README


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Send SMS", send_sms.SendSms),
        ("Get SMS", get_sms.GetSms),
        ("List SMS", list_sms.ListSms),
        ("Raw Request", raw_request.RawRequest),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_inputs(title: str, kind: type[Struct]) -> None:
    """Each action's table, or where there is none its text, names all inputs; `connection` is told once."""
    told = rows(section(title)).keys() or set(re.findall(r"`(\w+)`", section(title)))

    assert [] == [name for name in names(kind) if name not in told and name != "connection"]
    assert "connection" in rows(section("Send SMS"))


@pytest.mark.parametrize("kind", [list_sms.ListSms, raw_request.RawRequest], ids=lambda kind: kind.__name__)
def test_says_defaults(kind: type[Struct]) -> None:
    """The tables have the defaults of the inputs."""
    table = rows(section({"ListSms": "List SMS", "RawRequest": "Raw Request"}[kind.__name__]))
    defaults = {
        field.encode_name: str(field.default).lower()
        for field in msgspec.structs.fields(kind)
        if field.default not in (None, msgspec.NODEFAULT)
    }

    assert defaults == {name: table[name][0].strip("`") for name in defaults}


def test_names_connection_fields() -> None:
    """The table of connections has all fields of a secret."""
    assert set(names(Connection)) == rows(section("Configuration").split("### Connections")[1]).keys() & set(
        names(Connection)
    )


@pytest.mark.parametrize("name", ERRORS)
def test_tells_errors(name: str) -> None:
    """The table of errors has each with its status, and whether it can be retried."""
    _, status, retry = rows(section("Errors"))[name]

    assert str(ERRORS[name].status) == status[:3]
    assert ERRORS[name].retryable == (retry in {"yes", "after minutes"})


def test_tells_no_other_errors() -> None:
    """The table of errors has none that does not exist."""
    assert ERRORS.keys() == {name for name in rows(section("Errors")) if name.endswith("Error")}


def test_tells_metrics() -> None:
    """The table of metrics has all that are counted, and no other."""
    counted = set(re.findall(r'\b(?:count\(|name=)"([A-Z]\w+)"', SOURCES))

    assert counted == {name for name in rows(section("Metrics and logs")) if name != "service"} - {"error"}


def test_tells_events() -> None:
    """The table of events has every detail-type that the webhook publishes, and no other."""
    published = set(re.findall(r'"((?:[A-Z][\w-]+ )+(?:Received|Changed|Event|Logged))"', SOURCES))
    table = section("Webhook").split("| detail-type |")[1].split("\n\n")[0]

    assert published == set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def test_changelog_has_the_version() -> None:
    """The changelog tells of the layer's version, and has a place for what comes next."""
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert "## [Unreleased]" in changelog
    assert f"## [{__version__}]" in changelog


def test_links_lead_somewhere() -> None:
    """Every link to a file or a heading of the project has its target."""
    headings = [re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in README.splitlines()]
    links: list[str] = re.findall(r"\]\(([^)]+)\)", FENCE.sub("", README))
    local = [link for link in links if not link.startswith("https://")]

    def leads(link: str) -> Any:
        return link[1:] in headings if link.startswith("#") else (ROOT / link).exists()

    assert [] == [link for link in local if not leads(link)]
