"""The verdict on a run: it passes only a run that violates nothing and proves something."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import verdict
from tests.chaos.journal import (
    ANSWERS,
    BUS,
    CONTROL,
    FAILED,
    FAULTS,
    INTENTS,
    KNOWN,
    MADE,
    RESOLVED,
    TIMEOUTS,
    TRUTH,
    Journal,
)
from tests.chaos.schedule import CRASHES
from tests.unit import test_chaos_webhooks

KEY = "api-7-00001"


class Records:
    """The files of a small run in which everything went well."""

    def __init__(self, folder: Path, seed: int = 7) -> None:
        """Write the files."""
        self.folder = folder
        self._seed = seed
        self.journal = Journal(folder)
        self.journal.state(seed=seed, finished=True, outdated=1, void=[])
        test_chaos_webhooks.Records(folder, seed).journal.close()
        for number in range(10):
            self.asked(f"api-7-{number:05}")
            self.stored(f"api-7-{number:05}")
            self.answered(f"api-7-{number:05}", answer="message", sid=f"SM-api-7-{number:05}")
        for number in range(verdict.LEAST_KINDS):
            self.write(FAULTS, kind=f"kind_{number}", key=KEY)
        self.write(FAULTS, kind="GetSecretValue.hang_before", key=None)
        self.asked("bus-7-00000", part="bus_away", channel="sqs", has_key=False)
        self.stored("bus-7-00000")
        self.answered("bus-7-00000", answer="taken", known_as="of-7-queue")
        self.write(FAULTS, kind="PutEvents.throttle", key="bus-7-00000")
        self.happened("Message Sent", "of-7-queue", message={"sid": "SM-bus-7-00000"}, evidence="callback")
        self.asked("stranger-7-00000", part="stranger", callback="none")
        self.write(FAULTS, kind="reset_before", key="stranger-7-00000")
        self.made("SM-of-a-stranger", None)
        self.stored("stranger-7-00000", sid="SM-of-a-stranger")
        self.happened("Message Outcome Unknown", "stranger-7-00000", error={"title": "OutcomeUnknownError"})
        for _ in range(2):
            self.write(RESOLVED, began=1.0)
        for number, point in enumerate(CRASHES):
            key = f"crash-7-{number};fault=kill_before"
            self.asked(key, part="crash", crash=point, markers=["fault=kill_before"])
            self.write(FAULTS, kind="kill_before", key=key)
            self.happened("Message Outcome Unknown", key, error={"title": "OutcomeUnknownError"})
        self.asked("race-7-00000", part="race")
        self.stored("race-7-00000")
        self.answered("race-7-00000", answer="message", sid="SM-race-7-00000")
        self.asked("conflict-7-00000", part="conflict")
        self.answered("conflict-7-00000", answer="error", error="TwilioRejectedError")
        self.answered("conflict-7-00000", answer="error", error="IdempotencyConflictError", input=2)
        for number in range(10):
            self.write(CONTROL, key=f"naive-7-{number:05}")
            self.stored(f"naive-7-{number:05}", sid=f"SM-naive-{number}")
            self.stored(f"naive-7-{number:05}", sid=f"SM-naive-{number}-again")

    def write(self, name: str, **line: Any) -> None:
        """Add a line to a file. In its text, this run's seed replaces seed 7."""
        text = json.dumps(line).replace("-7-", f"-{self._seed}-")
        self.journal.write(name, **json.loads(text))

    def asked(self, key: str, *, part: str = "ordinary", channel: str = "api", **more: Any) -> None:
        """Add a call."""
        self.write(INTENTS, key=key, channel=channel, part=part, input=1, **more)

    def answered(self, key: str, **answer: Any) -> None:
        """Add an answer."""
        self.write(ANSWERS, **({"key": key, "input": 1, "sid": None, "error": None} | answer))

    def stored(self, key: str, *, sid: str | None = None) -> None:
        """Add a message that Twilio stored."""
        self.write(TRUTH, sid=sid or f"SM-{key}", body=f"Chaos {key}")

    def made(self, sid: str, key: str | None, *, callback: bool = False) -> None:
        """Add the relay's record of a message."""
        self.write(MADE, sid=sid, key=key, callback=callback)

    def lost(self, key: str, *, callback: str = "ours", is_called_back: bool = False, **more: Any) -> None:
        """Add a key whose answer was lost, and which stays unknown although Twilio stored the message."""
        self.asked(key, callback=callback, **more)
        self.write(FAULTS, kind="reset_after", key=key)
        self.made(f"SM-{key}", key, callback=is_called_back)
        self.stored(more.get("words") or key, sid=f"SM-{key}")
        self.answered(key, answer="error", error="OutcomeUnknownError")
        self.happened("Message Outcome Unknown", key, error={"title": "OutcomeUnknownError"})

    def known(self, key: str, **told: Any) -> None:
        """Add the connector's final record of a key."""
        self.write(KNOWN, **({"key": key, "state": "sent", "evidence": "answer", "sid": None} | told))

    def set_aside(self, key: str) -> None:
        """Add a record to the failed queue."""
        self.write(FAILED, body=json.dumps({"idempotency_key": key, "connection": "default"}))

    def happened(self, name: str, key: str, **detail: Any) -> None:
        """Add an event."""
        event = {"source": "twilio-connector", "detail-type": name, "detail": {"idempotency_key": key, **detail}}
        self.write(BUS, event=event)

    def reds(self) -> list[str]:
        """Return the names of the violations that the verdict finds."""
        return [row.name for row in verdict.Run(self.folder).violations() if row.keys]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Return the files of a run in which everything went well."""
    result = Records(tmp_path)
    yield result
    result.journal.close()


def test_green(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which everything went well passes. Its table shows the confidence bound for duplicates."""
    assert 0 == verdict.judge(records.folder)

    said = capsys.readouterr()
    assert "" == said.err
    assert "✗" not in said.out
    assert "sent twice                                 0   of 22   < 14 % at 95 %" in said.out
    assert "naive client                                10   20 stored, 1000 duplicates per 1,000" in said.out


@pytest.mark.parametrize(
    ("name", "plant"),
    {
        "sent twice": lambda run: run.stored(KEY, sid="SM-other"),
        "said sent on proof, not stored": lambda run: run.answered(KEY, answer="message", sid="SM-of-nobody"),
        "said sent on the list, callbacks come": lambda run: run.answered(
            KEY, answer="message", sid=f"SM-{KEY}", evidence="list"
        ),
        "could be known, but is unknown": lambda run: run.lost("api-7-00099", is_called_back=True),
        "given up in an outage": lambda run: (
            run.asked("hang-7-00000", part="secret_hangs", channel="sqs")
            or run.happened("Message Failed", "hang-7-00000", error={"title": "ServiceUnavailableError"})
        ),
        "twice in the failed queue": lambda run: run.set_aside("api-7-00002") or run.set_aside("api-7-00002"),
        "ended by its time limit": lambda run: run.write(TIMEOUTS, function="send_sms"),
        "without a final state": lambda run: run.asked("api-7-99999"),
        "same-key race, not stored once": lambda run: (
            run.asked("race-7-00001", part="race")
            or run.answered("race-7-00001", answer="error", error="TwilioRejectedError")
        ),
        "other input, no conflict": lambda run: run.answered("conflict-7-00000", answer="message", sid="SM", input=2),
        "failed queue, no key": lambda run: run.write(FAILED, body=json.dumps({"to": "+15005550006"})),
        "nobody's message or event": lambda run: run.stored("api-8-00000"),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_violations(records: Records, name: str, plant: Callable[[Records], object]) -> None:
    """Each violation fails the verdict, under its own name."""
    plant(records)

    assert [name] == records.reds()
    assert 1 == verdict.judge(records.folder)


@pytest.mark.parametrize("error", sorted(verdict.NOTHING_SENT))
def test_said_not_sent(records: Records, error: str) -> None:
    """An error that says that nothing was sent is a violation if Twilio stored the message."""
    records.asked("api-7-00099")
    records.stored("api-7-00099")
    records.answered("api-7-00099", answer="error", error=error)

    assert ["said not sent, but stored"] == records.reds()


def test_event_said_not_sent(records: Records) -> None:
    """An event that says that nothing was sent is a violation, even if an answer has the message's SID."""
    records.happened("Message Failed", KEY, error={"title": "TwilioRejectedError"})

    assert ["said not sent, but stored"] == records.reds()


def test_redriven(records: Records) -> None:
    """A failed send that was put back in the send queue may be sent afterwards, but only once."""
    records.asked("sqs-7-00001")
    records.happened("Message Failed", "sqs-7-00001", error={"title": "TwilioRejectedError"})
    records.write(INTENTS, key="sqs-7-00001", redriven=True)
    records.happened("Message Sent", "sqs-7-00001", message={"sid": "SM-sqs-7-00001"})
    records.stored("sqs-7-00001")
    assert [] == records.reds()

    records.stored("sqs-7-00001", sid="SM-again")
    assert ["sent twice"] == records.reds()


def test_tried_again(records: Records) -> None:
    """A key that was not sent at first may be sent later.

    An error from before the look-up of the key says nothing about earlier calls.
    """
    records.asked("api-7-00099")
    records.answered("api-7-00099", answer="error", error="TwilioRateLimitError")
    records.answered("api-7-00099", answer="lost")
    records.stored("api-7-00099")
    records.answered("api-7-00099", answer="error", error="ServiceUnavailableError")
    assert ["without a final state"] == records.reds()

    records.answered("api-7-00099", answer="message", sid="SM-api-7-00099")
    assert [] == records.reds()


def test_a_callback_lets_a_key_be_known(records: Records) -> None:
    """A key must not stay unknown if Twilio called back about its message; it may if the callbacks were lost."""
    records.lost("api-7-00098")
    assert [] == records.reds()

    records.lost("api-7-00099", is_called_back=True)
    assert ["could be known, but is unknown"] == records.reds()

    records.happened("Message Sent", "api-7-00099", message={"sid": "SM-api-7-00099"}, evidence="callback")
    assert [] == records.reds()


@pytest.mark.parametrize("callback", ["none", "others"])
def test_the_list_lets_a_key_be_known(records: Records, callback: str) -> None:
    """Without callbacks, a key must not stay unknown if its message is the only one in Twilio's list."""
    records.lost("api-7-00099", callback=callback)
    assert ["could be known, but is unknown"] == records.reds()

    records.known("api-7-00099", evidence="list", sid="SM-api-7-00099")
    assert [] == records.reds()


def test_a_stranger_with_the_same_words_leaves_a_key_unknown(records: Records) -> None:
    """A key may stay unknown if a stranger sent the same text, because the list cannot tell the two messages apart."""
    records.lost("api-7-00099", callback="none")
    records.made("SM-copy", None)
    records.stored("api-7-00099", sid="SM-copy")

    assert [] == records.reds()


def test_twins_in_the_list(records: Records) -> None:
    """While both twins are open, they may stay unknown, because the list cannot tell their messages apart.

    Proof of one twin's message identifies the other.
    """
    for place in range(2):
        records.lost(f"twin-7-1;n={place}", callback="none", words="twin-7-1")
    assert [] == records.reds()

    records.answered("twin-7-1;n=0", answer="message", sid="SM-twin-7-1;n=0")
    assert ["could be known, but is unknown"] == records.reds()


def test_an_unhurt_answer_lets_a_key_be_known(records: Records) -> None:
    """A key that no fault hit must not stay unknown."""
    records.asked("api-7-00099")
    records.answered("api-7-00099", answer="error", error="OutcomeUnknownError")
    records.happened("Message Outcome Unknown", "api-7-00099", error={"title": "OutcomeUnknownError"})

    assert ["could be known, but is unknown"] == records.reds()


def test_the_last_word_decides(records: Records) -> None:
    """The connector's final record of a key decides.

    If an answer showed that the message was sent, the key must not be unknown in the end.
    """
    records.known(KEY, state="unknown", evidence=None)
    records.made(f"SM-{KEY}", KEY, callback=True)

    assert ["could be known, but is unknown"] == records.reds()


def test_a_strangers_message_on_the_list(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    """If no callback can come, the list may show a stranger's message as the connector's.

    The verdict counts such keys in a separate row, and they are not a violation.
    """
    records.known("stranger-7-00000", evidence="list", sid="SM-of-a-stranger")

    assert 0 == verdict.judge(records.folder)
    assert "  on the list, a stranger's message          1" in capsys.readouterr().out


def test_a_strangers_message_is_no_proof(records: Records) -> None:
    """A stranger's message is a violation if the connector claims that a callback proved it."""
    records.happened("Message Sent", "stranger-7-00000", message={"sid": "SM-of-a-stranger"}, evidence="callback")

    assert ["said sent on proof, not stored"] == records.reds()


def test_another_keys_message(records: Records) -> None:
    """The final record of a key must not name another key's message, on any evidence."""
    records.asked("api-7-00099", callback="none")
    records.known("api-7-00099", evidence="list", sid=f"SM-{KEY}")
    records.answered("api-7-00099", answer="error", error="OutcomeUnknownError")
    records.happened("Message Outcome Unknown", "api-7-00099", error={"title": "OutcomeUnknownError"})

    assert {"said sent, another key's message", "one SID at two keys"} <= {*records.reds()}


def test_put_back_and_set_aside_again(records: Records) -> None:
    """A record may enter the failed queue once more for each time that it was put back."""
    records.set_aside(KEY)
    records.write(INTENTS, key=KEY, redriven=True)
    records.set_aside(KEY)

    assert [] == records.reds()


@pytest.mark.parametrize(("seconds", "is_caught"), [(1, True), (60, False)])
def test_what_a_killed_process_had_besides(
    records: Records,
    seconds: int,
    is_caught: bool,  # noqa: FBT001 the expected result
) -> None:
    """A key in an outage does not count as given up if another key's kill ended its process.

    A kill at another time is not an excuse.
    """
    records.asked("hang-7-00000", part="secret_hangs", channel="sqs")
    records.happened("Message Outcome Unknown", "hang-7-00000", error={"title": "OutcomeUnknownError"})
    claimed_at = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()
    records.known("hang-7-00000", state="unknown", evidence=None, claimed_at=claimed_at)

    assert ([] if is_caught else ["given up in an outage"]) == records.reds()


@pytest.mark.parametrize(
    ("asked", "killed", "twice"),
    [
        ((100.0, 135.0), 100.1, False),  # another record's kill caused the redelivery
        ((100.0,), 100.1, True),  # one delivery, two reports
        ((100.0, 135.0), 120.0, True),  # no kill happened while the batch was in progress
        ((100.0, 135.0), 136.0, True),
    ],
)
def test_a_killed_batch_is_delivered_again(
    records: Records, asked: tuple[float, ...], killed: float, *, twice: bool
) -> None:
    """A record may be reported twice if another record's kill ended its batch.

    Twilio must have been asked for the message both before and after the kill.
    """
    for _ in range(2):
        records.set_aside(KEY)
    for at in asked:
        records.write(FAULTS, kind="21610_before", key=KEY, at=at)
    records.write(FAULTS, kind="PutItem.kill_before", key="crash-7-99999", at=killed)

    assert (["twice in the failed queue"] if twice else []) == records.reds()


def test_a_disturbed_way_to_the_failed_queue(records: Records) -> None:
    """A record may be in the failed queue twice if a fault leaves it unknown whether the first attempt succeeded."""
    records.write(FAULTS, kind="SendMessage.drop_after", key=KEY)
    for _ in range(2):
        records.set_aside(KEY)

    assert [] == records.reds()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (RESOLVED, "no two runs of resolve were at work together"),
        (MADE, "few strangers sent the same words"),
        (FAULTS, "Secrets Manager did not hang"),
        (FAULTS, "the bus was away for few of those that were sent meanwhile"),
        (ANSWERS, "a message without key was not taken"),
    ],
)
def test_void_where_an_outage_is_missing(records: Records, name: str, reason: str) -> None:
    """A run is void if an outage, a stranger, a concurrent run of `resolve` or a send without a key is missing."""
    (records.folder / f"{name}.jsonl").write_text("")

    assert reason in verdict.Run(records.folder).void()


def test_void_where_no_index_was_behind(records: Records) -> None:
    """A run is void if no index was ever behind its table."""
    records.journal.state(seed=7, finished=True, outdated=0, void=[])

    assert ["no index was behind its table"] == verdict.Run(records.folder).void()


def test_three_seeds(records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several runs are judged together, and a violation in one of them fails all."""
    other = Records(tmp_path / "other", seed=8)
    with closing(other.journal):
        assert 0 == verdict.judge(records.folder, other.folder)
        assert "seeds                                     7, 8" in capsys.readouterr().out

        other.stored(KEY, sid="SM-other")
        assert 1 == verdict.judge(records.folder, other.folder)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("the run did not come to its end", {"finished": False}),
        ("no requests left", {"finished": True, "void": ["no requests left"]}),
    ],
)
def test_void(records: Records, capsys: pytest.CaptureFixture[str], reason: str, line: dict[str, Any]) -> None:
    """A run is void if its own record says that it did not finish or proves nothing."""
    records.journal.state(seed=7, outdated=1, **line)

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
    """A run is void if it has no sends, no faults, or only faults that the naive client survives."""
    (records.folder / f"{name}.jsonl").write_text("")
    for other in {ANSWERS, BUS, TRUTH} if name == INTENTS else set[str]():
        (records.folder / f"{other}.jsonl").write_text("")

    assert 1 == verdict.judge(records.folder)
    assert f"void: {reason}\n" in capsys.readouterr().err


def test_no_run(tmp_path: Path) -> None:
    """A folder without a run fails, because it proves nothing."""
    assert 1 == verdict.judge(tmp_path)
