"""The relay of `make chaos`: whose message Twilio makes, and who else sends the same words."""

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
    """A relay in front of a Twilio, and what both wrote down."""

    def __init__(self, relay: Relay, twilio: FaultServer, records: Journal) -> None:
        """Take them."""
        self.relay = relay
        self.twilio = twilio
        self._records = records

    def send(self, send: Send, **more: str) -> int | None:
        """Ask for a message as the connector does; return the status, None of a lost answer."""
        form = {"To": "+15550100000", "From": "+15551234567", "Body": send.text}
        form |= {_FORM[name]: str(value) for name, value in send.fields.items()} | more
        url = f"{self.relay.url}/2010-04-01/Accounts/AC{'0' * 32}/Messages.json"
        try:
            return requests.post(url, data=form, timeout=10).status_code
        except requests.RequestException:
            return None

    def lines(self, name: str) -> list[dict[str, object]]:
        """Return what is written in a file."""
        return list(journal.read([self._records.folder], name))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Give a relay."""
    records = Journal(tmp_path)
    with FaultServer() as twilio, Relay(records) as relay:
        relay.upstream = twilio.url
        twilio.named = dict.fromkeys(twilio.named, faults.OK)
        yield Place(relay, twilio, records)
    records.close()


def sends(part: Part, *markers: str) -> list[Send]:
    """Return the keys of a part that have all these markers in them."""
    return [send for send in plan(7, SHORT) if send.part is part and all(each in send.key for each in markers)]


def test_each_twin_has_its_own_fault(place: Place) -> None:
    """Twins are told apart though their words are the same, and each message is given to whom it was made for."""
    first, second = sends(Part.TWIN, "fault=ok,500_before")[:2]
    assert first.text == second.text

    assert 201 == place.send(first)
    assert 201 != place.send(second)
    assert [first.key] == [line["key"] for line in place.lines(MADE)]
    assert ["ok", "500_before"] == [request.fault for request in place.relay.requests]


@pytest.mark.parametrize(("when", "place_of_stranger"), [("first", 0), ("second", 1)])
def test_a_stranger_sends_the_same_words(place: Place, when: str, place_of_stranger: int) -> None:
    """Before or after the connector's own message, once, and without a callback."""
    send = sends(Part.STRANGER, "_after", f"stranger={when}")[0]

    for _ in range(2):
        place.send(send, StatusCallback=_CALLBACK)

    bodies = [request.form["Body"] for request in place.twilio.requests]
    assert [[send.text]] * 3 == bodies
    assert None is place.lines(MADE)[place_of_stranger]["key"]
    assert 1 == sum(line["key"] is None for line in place.lines(MADE))
    assert [""] == place.twilio.requests[place_of_stranger].form["StatusCallback"]


def test_a_stranger_where_twilio_took_nothing(place: Place) -> None:
    """The only message is then the stranger's."""
    send = sends(Part.STRANGER, "_before")[0]

    place.send(send)

    assert [None] == [line["key"] for line in place.lines(MADE)]
    assert 1 == len(place.twilio.requests)


def test_whether_twilio_calls_back(place: Place) -> None:
    """It does where the connector asked for it and nothing takes that away; where something does, the URL is kept."""
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
    """A URL that the input names is nobody's proof."""
    send = next(send for send in sends(Part.STRANGER, "_after") if send.callback is Callback.OTHERS)

    place.send(send)

    assert [False] == [line["callback"] for line in place.lines(MADE) if line["key"]]
    assert not place.relay.made
