"""The relay of `make chaos`: it records whose message Twilio creates, and sends strangers' messages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.chaos import journal
from tests.chaos.journal import MADE, Journal
from tests.chaos.schedule import SHORT, Callback, Part, Send, plan
from tests.chaos.setting import Relay
from tests.faults import FaultServer, faults

_CALLBACK = "https://hook.example/webhook/default?send=" + "0" * 64
_FORM = {"validity_period": "ValidityPeriod", "status_callback": "StatusCallback"}


class Place:
    """A relay in front of a fake Twilio, and the records of both."""

    def __init__(self, relay: Relay, twilio: FaultServer, records: Journal) -> None:
        """Store the relay, the fake Twilio and the journal."""
        self.relay = relay
        self.twilio = twilio
        self._records = records

    def send(self, send: Send, **more: str) -> int | None:
        """Request a message as the connector does. Return the status, or None if the answer is lost."""
        form = {"To": "+15550100000", "From": "+15551234567", "Body": send.text}
        form |= {_FORM[name]: str(value) for name, value in send.fields.items()} | more
        url = f"{self.relay.url}/2010-04-01/Accounts/AC{'0' * 32}/Messages.json"
        try:
            return requests.post(url, data=form, timeout=10).status_code
        except requests.RequestException:
            return None

    def lines(self, name: str) -> list[dict[str, object]]:
        """Return the lines of one of the journal's files."""
        return list(journal.read([self._records.folder], name))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Return a relay in front of a fake Twilio."""
    records = Journal(tmp_path)
    with FaultServer() as twilio, Relay(records) as relay:
        relay.upstream = twilio.url
        twilio.named = dict.fromkeys(twilio.named, faults.OK)
        yield Place(relay, twilio, records)
    records.close()


def sends(part: Part, *markers: str) -> list[Send]:
    """Return the sends of a part whose keys contain all these markers."""
    return [send for send in plan(7, SHORT) if send.part is part and all(each in send.key for each in markers)]


def test_each_twin_has_its_own_fault(place: Place) -> None:
    """Twins have separate faults despite the same text, and each message is recorded for its own key."""
    first, second = sends(Part.TWIN, "fault=ok,500_before")[:2]
    assert first.text == second.text

    assert 201 == place.send(first)
    assert 201 != place.send(second)
    assert [first.key] == [line["key"] for line in place.lines(MADE)]
    assert ["ok", "500_before"] == [request.fault for request in place.relay.requests]


@pytest.mark.parametrize(("when", "place_of_stranger"), [("first", 0), ("second", 1)])
def test_a_stranger_sends_the_same_words(place: Place, when: str, place_of_stranger: int) -> None:
    """A stranger sends the same text once and without a callback, before or after the connector's own message."""
    send = sends(Part.STRANGER, "_after", f"stranger={when}")[0]

    for _ in range(2):
        place.send(send, StatusCallback=_CALLBACK)

    bodies = [request.form["Body"] for request in place.twilio.requests]
    assert [[send.text]] * 3 == bodies
    assert None is place.lines(MADE)[place_of_stranger]["key"]
    assert 1 == sum(line["key"] is None for line in place.lines(MADE))
    assert [""] == place.twilio.requests[place_of_stranger].form["StatusCallback"]


def test_a_stranger_where_twilio_took_nothing(place: Place) -> None:
    """If Twilio does not accept the connector's message, the stranger's message is the only one."""
    send = sends(Part.STRANGER, "_before")[0]

    place.send(send)

    assert [None] == [line["key"] for line in place.lines(MADE)]
    assert 1 == len(place.twilio.requests)


def test_whether_twilio_calls_back(place: Place) -> None:
    """Twilio calls back if the connector requested a callback and the key has no `callback=none`.

    With `callback=none`, the relay keeps the callback's URL.
    """
    heard = sends(Part.STRANGER, "_after")
    lost, kept = (
        next(send for send in heard if ("callback=none" in send.key) is is_lost and send.callback is Callback.OURS)
        for is_lost in (True, False)
    )
    for send in (lost, kept):
        place.send(send, StatusCallback=f"{_CALLBACK}#rc=2")

    own = {line["key"]: line["callback"] for line in place.lines(MADE) if line["key"]}
    assert {lost.key: False, kept.key: True} == own
    assert [kept.key] == list(place.relay.made)
    assert {lost.key: _CALLBACK} == {key: url for key, (_, url) in place.relay.silent.items()}


def test_others_are_not_asked_for_their_callbacks(place: Place) -> None:
    """A callback to a URL that the input names is not recorded, because it proves nothing to the connector."""
    send = next(send for send in sends(Part.STRANGER, "_after") if send.callback is Callback.OTHERS)

    place.send(send)

    assert [False] == [line["callback"] for line in place.lines(MADE) if line["key"]]
    assert not place.relay.made
