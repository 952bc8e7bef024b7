"""The documentation's pictures: the architecture matches the template, and the terminal shows the demo's steps."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pictures
import pytest
import terminal

from tests.readme import ROOT

TEMPLATE = (ROOT / "template.yaml").read_text()
NEW_QUEUE = """\
  AnotherQueue:
    Type: AWS::SQS::Queue
Outputs:
"""


def stack(folder: Path, template: str) -> pictures.Stack:
    """Return the stack that the pictures read from a template."""
    path = folder / "template.yaml"
    path.write_text(template)
    return pictures.Stack(path)


def test_architecture_is_the_templates(tmp_path: Path) -> None:
    """The picture shows the template's resources, and no arrow that the template does not have."""
    assert [] == pictures.faults(stack(tmp_path, TEMPLATE))


def test_new_resource_needs_a_place(tmp_path: Path) -> None:
    """A queue that the picture does not show is an error."""
    changed = TEMPLATE.replace("Outputs:\n", NEW_QUEUE)

    assert ["AnotherQueue has no place in the picture"] == pictures.faults(stack(tmp_path, changed))


def test_arrow_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """An arrow that the template no longer has is an error."""
    changed = TEMPLATE.replace("EventSourceArn: !GetAtt SendQueue.Arn", "EventSourceArn: !GetAtt FailedQueue.Arn")

    assert ["the template has no arrow from SendQueue to SendSmsFunction"] == pictures.faults(stack(tmp_path, changed))


@pytest.mark.parametrize("path", sorted(pictures.FOLDER.glob("*.svg")), ids=lambda path: path.stem)
def test_picture_asks_nobody(path: Path) -> None:
    """A picture is well-formed, has a title, and loads nothing from other sites."""
    text = path.read_text()
    title = ET.fromstring(text).find("{http://www.w3.org/2000/svg}title")  # noqa: S314 the project's own

    assert title is not None
    assert title.text
    assert [] == [word for word in ("href", "url(http", "@import", "<script") if word in text]


@pytest.mark.parametrize("title", terminal.SHOWN)
def test_terminal_shows_the_demos_steps(title: str) -> None:
    """Each step of the terminal's picture is a step of the demo or of the stack, and both themes show it."""
    code = (ROOT / "local" / "demo.py").read_text() + (ROOT / "local" / "stack.py").read_text()

    assert f'step("{title}")' in code
    for theme in terminal.THEMES:
        assert title in (terminal.FOLDER / f"demo-{theme}.svg").read_text()
