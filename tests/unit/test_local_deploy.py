"""The local deployment leaves out the parts that the emulator refuses, and reports them."""

from typing import Any

import pytest

from local import deploy


def resources() -> dict[str, Any]:
    """Return resources of a template."""
    condition = {"Null": {"events:source": "false"}, "StringEquals": {"events:source": "twilio"}}
    return {
        "Function": {"Type": "A::Function", "Properties": {"Policies": [{"Condition": condition}], "Tags": ["a", "b"]}},
        "Archive": {"Type": "A::Archive", "Properties": {}},
    }


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("A::Archive/*", lambda left: "Archive" not in left and "Function" in left),
        ("A::Function/*/Tags", lambda left: [*left["Function"]["Properties"]] == ["Policies"]),
        (
            "A::Function/*/Condition/Null/events:source",
            lambda left: (
                left["Function"]["Properties"]["Policies"][0]["Condition"]
                == {"StringEquals": {"events:source": "twilio"}}
            ),
        ),
    ],
    ids=["type", "property", "condition"],
)
def test_left_out(pattern: str, kept: Any) -> None:
    """A pattern leaves out a resource type, a property or a policy's condition, and nothing else."""
    left = resources()

    assert [pattern] == list(deploy.leave_out(left, [pattern]))
    assert kept(left)


def test_nothing_is_left_out_that_is_not_there() -> None:
    """A pattern that matches nothing leaves nothing out, and is not reported."""
    left = resources()

    assert [] == list(deploy.leave_out(left, ["A::Function/*/Nothing"]))
    assert resources() == left


def test_limits_have_reasons() -> None:
    """Each part that is left out or refused has a reason."""
    assert all({**deploy.LEFT_OUT, **deploy.REFUSED}.values())
