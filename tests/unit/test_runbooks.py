"""The runbooks: each alarm has a short page with fixed headings, and the operations page links to it."""

import re

import pytest

from tests.readme import BLOCKS, FENCE, PAGES, section
from tests.unit.test_bundle import of_type

HEADINGS = [
    "What it means",
    "Who notices",
    "First look",
    "Causes, most likely first",
    "What to do",
    "How to see that it is over",
]
WITHOUT_ALARM = {"redrive", "twilio-outage", "bus-outage", "no-sms-came", "rotation-after-a-leak"}
FOLDER = "docs/operations/"
RUNBOOKS = {name.removeprefix(FOLDER).removesuffix(".md"): text for name, text in PAGES.items() if FOLDER in name}


def page_of(alarm: str) -> str:
    """Return the name of an alarm's page: the alarm's name in lower case, with dashes between its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", alarm).lower()


def alarms() -> set[str]:
    """Return the names of the template's alarms, without the ending `Alarm`."""
    names = [*of_type("AWS::CloudWatch::Alarm"), *of_type("AWS::CloudWatch::CompositeAlarm")]
    return {name.removesuffix("Alarm") for name in names}


def test_each_alarm_has_its_page() -> None:
    """Each alarm has a page, and each page has an alarm, except the pages in `WITHOUT_ALARM`."""
    assert {page_of(alarm) for alarm in alarms()} | WITHOUT_ALARM == RUNBOOKS.keys()


def test_pages_are_found() -> None:
    """The operations page links each alarm to its page, and also links to each page without an alarm."""
    links = r"\]\(operations/([\w-]+)\.md\) \|"
    found = dict(re.findall(rf"^\| `(\w+)` \|.*{links}", section("operations", "Alarms"), re.MULTILINE))

    assert {alarm: page_of(alarm) for alarm in alarms()} == found
    assert sorted(WITHOUT_ALARM) == sorted(re.findall(links, section("operations", "Without an alarm")))


@pytest.mark.parametrize("name", RUNBOOKS)
def test_page_has_the_headings(name: str) -> None:
    """Each page has the same headings in the same order, text below each of them, and at most 60 lines."""
    assert HEADINGS == re.findall(r"^## (.+)$", FENCE.sub("", RUNBOOKS[name]), re.MULTILINE)
    assert all(section(f"operations/{name}", heading).strip() for heading in HEADINGS)
    assert 60 >= len(RUNBOOKS[name].splitlines())


@pytest.mark.parametrize("name", RUNBOOKS)
def test_first_look_is_a_command(name: str) -> None:
    """The first command of each page is in its First look section, is run by the tests, and changes nothing."""
    first = next(block for block in BLOCKS if block.page == f"{FOLDER}{name}.md")

    assert first.text in section(f"operations/{name}", "First look")
    assert "run" == first.mark
    verbs = re.findall(r"\baws [\w-]+ ([a-z]+)", first.text)
    assert {"describe", "filter", "get", "list", "put", "receive"} >= set(verbs)
    assert ("put" in verbs) == (name == "bus-outage")  # it puts an event that no rule matches
    assert all("--dry-run" in line for line in first.text.splitlines() if "redrive.py" in line)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_sentences_are_short(name: str) -> None:
    """No sentence of a page has more than thirty words."""
    prose = re.sub(r"\]\([^)]*\)", "]", FENCE.sub("", RUNBOOKS[name]))
    parts = re.split(r"\n\s*\n|\n(?=\d\. |- |\|)|(?<=[.:;?])\s+|\|", prose)

    assert [] == [part for part in parts if len(part.split()) > 30]
