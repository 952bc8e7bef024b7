"""The verdict on a run: green only for one in which nothing was violated, and which proves something."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.torture import verdict
from tests.torture.journal import ANSWERS, BUS, CONTROL, FAILED, FAULTS, INTENTS, TRUTH, Journal
from tests.torture.schedule import CRASHES
from tests.unit import test_torture_webhooks

KEY = "api-7-00001"


class Records:
    """The files of a small run in which all went well."""

    def __init__(self, folder: Path) -> None:
        """Write them."""
        self.folder = folder
        self.journal = Journal(folder)
        self.journal.state(seed=7, finished=True, void=[])
        test_torture_webhooks.Records(folder).journal.close()
        for number in range(10):
            self.asked(f"api-7-{number:05}")
            self.stored(f"api-7-{number:05}")
            self.answered(f"api-7-{number:05}", answer="message", sid=f"SM-api-7-{number:05}")
        for number in range(verdict.LEAST_KINDS):
            self.journal.write(FAULTS, kind=f"kind_{number}", key=KEY)
        for number, point in enumerate(CRASHES):
            key = f"crash-7-{number};fault=kill_before"
            self.asked(key, part="crash", crash=point, markers=["fault=kill_before"])
            self.journal.write(FAULTS, kind="kill_before", key=key)
            self.happened("Message Outcome Unknown", key, error={"title": "OutcomeUnknownError"})
        self.asked("race-7-00000", part="race")
        self.stored("race-7-00000")
        self.answered("race-7-00000", answer="message", sid="SM-race-7-00000")
        self.asked("conflict-7-00000", part="conflict")
        self.answered("conflict-7-00000", answer="error", error="TwilioRejectedError")
        self.answered("conflict-7-00000", answer="error", error="IdempotencyConflictError", input=2)
        for number in range(10):
            self.journal.write(CONTROL, key=f"naive-7-{number:05}")
            self.stored(f"naive-7-{number:05}", sid=f"SM-naive-{number}")
            self.stored(f"naive-7-{number:05}", sid=f"SM-naive-{number}-again")

    def asked(self, key: str, *, part: str = "ordinary", **more: Any) -> None:
        """Add a call."""
        self.journal.write(INTENTS, key=key, channel="api", part=part, input=1, **more)

    def answered(self, key: str, **answer: Any) -> None:
        """Add an answer."""
        self.journal.write(ANSWERS, **({"key": key, "input": 1, "sid": None, "error": None} | answer))

    def stored(self, key: str, *, sid: str | None = None) -> None:
        """Add a message of Twilio's."""
        self.journal.write(TRUTH, sid=sid or f"SM-{key}", body=f"Torture {key}")

    def happened(self, name: str, key: str, **detail: Any) -> None:
        """Add an event."""
        event = {"source": "twilio-connector", "detail-type": name, "detail": {"idempotency_key": key, **detail}}
        self.journal.write(BUS, event=event)

    def reds(self) -> list[str]:
        """Return what the verdict finds."""
        return [row.name for row in verdict.Run(self.folder).violations() if row.keys]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Give the files of a run in which all went well."""
    result = Records(tmp_path)
    yield result
    result.journal.close()


def test_green(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which all went well is green, and its table names the bound of chance."""
    assert 0 == verdict.judge(records.folder)

    said = capsys.readouterr()
    assert "" == said.err
    assert "✗" not in said.out
    assert "sent twice                                 0   of 20   < 15 % at 95 %" in said.out
    assert "naive client                                10   20 stored, 1000 duplicates per 1,000" in said.out


@pytest.mark.parametrize(
    ("name", "plant"),
    {
        "sent twice": lambda run: run.stored(KEY, sid="SM-other"),
        "said sent, not stored": lambda run: run.answered(KEY, answer="message", sid="SM-of-nobody"),
        "without a final state": lambda run: run.asked("api-7-99999"),
        "same-key race, not stored once": lambda run: (
            run.asked("race-7-00001", part="race")
            or run.answered("race-7-00001", answer="error", error="TwilioRejectedError")
        ),
        "other input, no conflict": lambda run: run.answered("conflict-7-00000", answer="message", sid="SM", input=2),
        "failed queue, no key": lambda run: run.journal.write(FAILED, body=json.dumps({"to": "+15005550006"})),
        "nobody's message or event": lambda run: run.stored("api-8-00000"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_violations(records: Records, name: str, plant: Callable[[Records], object]) -> None:
    """Each violation turns the verdict red, by its own name."""
    plant(records)

    assert [name] == records.reds()
    assert 1 == verdict.judge(records.folder)


@pytest.mark.parametrize("error", sorted(verdict.NOTHING_SENT))
def test_said_not_sent(records: Records, error: str) -> None:
    """An answer that says that nothing was sent is a lie where the message is there."""
    records.asked("api-7-00099")
    records.stored("api-7-00099")
    records.answered("api-7-00099", answer="error", error=error)

    assert ["said not sent, but stored"] == records.reds()


def test_event_said_not_sent(records: Records) -> None:
    """So is an event, also where another says that it was sent."""
    records.happened("Message Failed", KEY, error={"title": "TwilioRejectedError"})

    assert ["said not sent, but stored"] == records.reds()


def test_redriven(records: Records) -> None:
    """What failed, and was put back in the send queue, may be sent after all: once."""
    records.asked("sqs-7-00001")
    records.happened("Message Failed", "sqs-7-00001", error={"title": "TwilioRejectedError"})
    records.journal.write(INTENTS, key="sqs-7-00001", redriven=True)
    records.happened("Message Sent", "sqs-7-00001", message={"sid": "SM-sqs-7-00001"})
    records.stored("sqs-7-00001")
    assert [] == records.reds()

    records.stored("sqs-7-00001", sid="SM-again")
    assert ["sent twice"] == records.reds()


def test_tried_again(records: Records) -> None:
    """What was not sent at first may be sent later; what comes before the look-up says nothing of earlier calls."""
    records.asked("api-7-00099")
    records.answered("api-7-00099", answer="error", error="TwilioRateLimitError")
    records.answered("api-7-00099", answer="lost")
    records.stored("api-7-00099")
    records.answered("api-7-00099", answer="error", error="ServiceUnavailableError")
    assert ["without a final state"] == records.reds()

    records.answered("api-7-00099", answer="message", sid="SM-api-7-00099")
    assert [] == records.reds()


def test_never_resolved(records: Records) -> None:
    """A message that is there may not stay unknown; one that is not there may."""
    records.asked("api-7-00099")
    records.answered("api-7-00099", answer="error", error="OutcomeUnknownError")
    records.happened("Message Outcome Unknown", "api-7-00099", error={"title": "OutcomeUnknownError"})
    assert [] == records.reds()

    records.stored("api-7-00099")
    assert ["unknown, stored, never resolved"] == records.reds()

    records.happened("Message Sent", "api-7-00099", message={"sid": "SM-api-7-00099"})
    assert [] == records.reds()


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("the run did not come to its end", {"finished": False}),
        ("no requests left", {"finished": True, "void": ["no requests left"]}),
    ],
)
def test_void(records: Records, capsys: pytest.CaptureFixture[str], reason: str, line: dict[str, Any]) -> None:
    """A run that says of itself that it proves nothing is void."""
    records.journal.state(seed=7, **line)

    assert 1 == verdict.judge(records.folder)
    assert f"void: {reason}\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (INTENTS, "nothing was sent"),
        (FAULTS, "0 kinds of faults, fewer than 20"),
        (FAULTS, "0 of 1 processes were killed before the claim is stored"),
        (FAULTS, "faults reached 0% of the keys that name one"),
        (CONTROL, "the naive client sent 0 duplicates per 1,000: faults do not bite"),
    ],
)
def test_void_without(records: Records, capsys: pytest.CaptureFixture[str], name: str, reason: str) -> None:
    """A run without sends, without faults, or whose faults defeat nobody, is void."""
    (records.folder / f"{name}.jsonl").write_text("")
    for other in {ANSWERS, BUS, TRUTH} if name == INTENTS else set[str]():
        (records.folder / f"{other}.jsonl").write_text("")

    assert 1 == verdict.judge(records.folder)
    assert f"void: {reason}\n" in capsys.readouterr().err


def test_no_run(tmp_path: Path) -> None:
    """A folder without a run proves nothing."""
    assert 1 == verdict.judge(tmp_path)
