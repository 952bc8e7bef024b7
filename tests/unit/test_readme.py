"""README and docs agree with the project, as far as this can be checked without running it."""

import json
import re
import shutil
import subprocess

import get_sms
import list_sms
import msgspec
import pytest
import raw_request
import send_sms
import webhook
from msgspec import Struct
from twilio_connector import __version__, errors
from twilio_connector.api.connections import Connection, parse_secret
from twilio_connector.invocation.handler import CALL_METRICS

from local import shell
from tests.aws_wire import AwsWire
from tests.conftest import DEPLOYED, Context
from tests.readme import BLOCKS, FENCE, PAGES, ROOT, Block, marked, rows, section
from tests.unit.test_bundle import of_type

ALARMS = rows(section("operations", "Alarms"))
SOURCES = "".join(path.read_text() for path in DEPLOYED)
ERRORS: dict[str, type[errors.ConnectorError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ConnectorError) and kind is not errors.ConnectorError
}


def names(kind: type[Struct]) -> list[str]:
    """Return the names of a struct's fields as users write them."""
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def test_every_block_is_marked() -> None:
    """Every fenced block has a mark that says how it is tested."""
    for page, text in PAGES.items():
        assert len(FENCE.findall(text)) == len([block for block in BLOCKS if block.page == page]), page


def test_few_commands_are_only_parsed() -> None:
    """At most fifteen blocks are only parsed and not run, and each of them gives a reason."""
    parsed = marked("parse")

    assert 15 >= len(parsed)
    assert [] == [block for block in parsed if not block.argument]


def test_readme_is_short() -> None:
    """The front page has at most 180 lines."""
    assert 180 >= len(PAGES["README.md"].splitlines())


def test_failing_command_does_not_print_the_environment() -> None:
    """If `aws` fails or prints nothing, the commands that set the stack's names print nothing either."""
    setting = [block for block in marked("run") if "describe-stacks" in block.text and "export" in block.text]

    assert setting
    for block in setting:
        for fails in ("aws() { return 1; }", "aws() { :; }"):
            script = f"export SECRET_OF_MINE=hush\n{fails}\n{block.text}"
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
            assert ("", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_api_function_is_the_local_stacks(page: str) -> None:
    """The pages define the function that signs requests exactly as the local stack's shell does."""
    assert shell.API in [block.text for block in marked("run") if block.page == page]


@pytest.mark.parametrize("block", marked("run", "parse", "model"), ids=str)
def test_commands_parse(block: Block) -> None:
    """Every command has the syntax of Bash."""
    bash = shutil.which("bash") or "bash"
    check = subprocess.run([bash, "-n"], input=block.text, capture_output=True, text=True, check=False)

    assert (0, "") == (check.returncode, check.stderr)


@pytest.mark.parametrize("block", marked("run", "parse", "model"), ids=str)
def test_commands_mean_the_same_in_zsh(block: Block) -> None:
    """No command has syntax that only zsh interprets: comments, modifiers after names, and history expansion."""
    assert [] == re.findall(r"(?:^|\s)#\s.*|\$\w+:[A-Za-z]|!", block.text, re.MULTILINE)


@pytest.mark.parametrize("block", marked("answer", "file", "published", "save"), ids=str)
def test_json_parses(block: Block) -> None:
    """Every JSON block is an object."""
    assert isinstance(json.loads(block.text), dict)


@pytest.mark.parametrize("block", marked("file"), ids=str)
def test_shows_files(block: Block) -> None:
    """A block that shows a file equals the file."""
    assert json.loads((ROOT / block.argument).read_text()) == json.loads(block.text)


@pytest.mark.parametrize("block", marked("save"), ids=str)
def test_shows_a_connection(block: Block) -> None:
    """The secret that a page shows is a valid connection with the token that the webhook needs."""
    connection = parse_secret("default", block.text)

    assert json.loads(block.text)["account_sid"] == connection.account_sid
    assert connection.webhook_tokens


@pytest.mark.parametrize("block", marked("published"), ids=str)
def test_shows_a_published_event(block: Block, aws_wire: AwsWire, context: Context) -> None:
    """The event that a page shows is the event that the webhook publishes for the example request."""
    shown = json.loads(block.text)

    answer = webhook.handler(json.loads((ROOT / block.argument).read_text()), context)

    assert (200, "<Response/>") == (answer["statusCode"], answer["body"])
    assert shown == json.loads(aws_wire.entries[0]["Detail"]) | {"received_at": shown["received_at"]}
    assert f"detail-type `{aws_wire.entries[0]['DetailType']}`" in PAGES[block.page]


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
    """The reference names each input of each action. It describes `connection` once, under Send SMS."""
    told = rows(section("reference", title)).keys() or set(re.findall(r"`(\w+)`", section("reference", title)))

    assert [] == [name for name in names(kind) if name not in told and name != "connection"]
    assert "connection" in rows(section("reference", "Send SMS"))


@pytest.mark.parametrize("kind", [list_sms.ListSms, raw_request.RawRequest], ids=lambda kind: kind.__name__)
def test_says_defaults(kind: type[Struct]) -> None:
    """The reference's tables have the inputs' defaults."""
    title = {"ListSms": "List SMS", "RawRequest": "Raw Request"}[kind.__name__]
    table = rows(section("reference", title))
    defaults = {
        field.encode_name: str(field.default).lower()
        for field in msgspec.structs.fields(kind)
        if field.default not in (None, msgspec.NODEFAULT)
    }

    assert defaults == {name: table[name][0].strip("`") for name in defaults}


def test_names_connection_fields() -> None:
    """The table of connections has exactly the fields of a secret."""
    assert set(names(Connection)) == rows(section("connections", "Fields of both")).keys()


@pytest.mark.parametrize("name", ERRORS)
def test_tells_errors(name: str) -> None:
    """The table of errors has each error with its status, and with whether it can be retried."""
    _, status, retry = rows(section("reference", "Errors"))[name]

    assert str(ERRORS[name].status) == status[:3]
    assert ERRORS[name].retryable == (retry in {"yes", "after minutes"})


def test_tells_no_other_errors() -> None:
    """The table of errors has exactly the errors that exist."""
    assert ERRORS.keys() == {name for name in rows(section("reference", "Errors")) if name.endswith("Error")}


def test_tells_metrics() -> None:
    """The tables of metrics have exactly the metrics that the code and the log filters count."""
    counted = set(re.findall(r'\b(?:count\(|waited\(|name=|metric=)"([A-Z]\w+)"', SOURCES))
    counted |= set(CALL_METRICS.values())
    for metric_filter in of_type("AWS::Logs::MetricFilter").values():
        counted |= {each["MetricName"] for each in metric_filter["MetricTransformations"]}

    assert counted == {name for name in rows(section("reference", "Metrics")) if name != "service"} - {"error"}


def test_tells_events() -> None:
    """The table of events has exactly the detail-types that the webhook publishes."""
    published = set(re.findall(r'"((?:[A-Z][\w-]+ )+(?:Received|Changed|Event|Logged))"', SOURCES))
    table = section("reference", "Events of Twilio").split("| detail-type |")[1].split("\n\n")[0]

    assert published == set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def test_changelog_has_the_version() -> None:
    """The changelog has a section for the layer's version and one for unreleased changes."""
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert "## [Unreleased]" in changelog
    assert f"## [{__version__}]" in changelog


def test_tells_alarms() -> None:
    """The table of alarms has exactly the template's alarms, with their descriptions and runbooks."""
    every = of_type("AWS::CloudWatch::Alarm") | of_type("AWS::CloudWatch::CompositeAlarm")
    alarms = {
        name.removesuffix("Alarm"): alarm["AlarmDescription"].split(" Runbook: docs/") for name, alarm in every.items()
    }
    told = {name: [means, page.partition("](")[2].strip(")")] for name, [means, _, page] in ALARMS.items()}

    assert alarms == told


def test_tells_who_notifies() -> None:
    """The table of alarms says who notifies: the alarm itself, or the composite alarm whose rule contains it."""
    told = {name: who.strip("`") for name, [_, who, _] in ALARMS.items()}
    for name, alarm in of_type("AWS::CloudWatch::CompositeAlarm").items():
        members = set(re.findall(r"\$\{(\w+)Alarm\}", alarm["AlarmRule"]["Fn::Sub"]))

        assert members == {member for member, who in told.items() if f"{who}Alarm" == name}
    assert {"itself", "SendingBroken", "ReceivingBroken"} == {*told.values()}


def test_tells_queries() -> None:
    """The table of queries has exactly the queries that the template saves."""
    saved = {each["Name"]["Fn::Sub"] for each in of_type("AWS::Logs::QueryDefinition").values()}

    assert saved == {f"${{AWS::StackName}}/{name}" for name in rows(section("operations", "Queries"))}
