"""`poll_messages` publishes each new or changed message in Twilio's list once, however its runs end."""

import gc
import itertools
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from poll_messages import handler
from twilio_connector import http
from twilio_connector.api.client import Twilio
from twilio_connector.aws import client
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectorError,
    InternalError,
    InvalidInputError,
    ServiceUnavailableError,
    TwilioRateLimitError,
    TwilioRejectedError,
    TwilioUnavailableError,
)
from twilio_connector.invocation.events import SqsRecord
from twilio_connector.polling.checkpoint import OVERLAP_SECONDS, SETTLING_SECONDS, Progress, Scan
from twilio_connector.polling.scan import REMEMBERED_SECONDS, Account, Due, decide
from twilio_connector.publishing import publisher
from twilio_connector.publishing.deduplication import RETENTION_SECONDS
from twilio_connector.webhooks import events

from tests.actors import Crash, answer_requests
from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, History, faults
from tests.faults.twilio import NEWEST, message
from tests.faults.wire import Reply, Request
from tests.unit.conftest import ACCOUNT_SID, API_KEY, Clock, Log

MESSAGES = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages"
KEY = f"polling:default:{ACCOUNT_SID}"
AWAY = (500, "InternalError")
THROTTLED = (400, "ThrottlingException")
HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
def clock(clock: Clock) -> Clock:
    """Set the clock to the time of Twilio's newest message."""
    clock.now = NEWEST.timestamp()
    return clock


class Bus:
    """The event bus. It records SID, status and mark of each event that it took, in order."""

    def __init__(self, wire: AwsWire) -> None:
        self.taken: list[tuple[str, str, str | None]] = []
        self.details: list[dict[str, Any]] = []
        self.keeps_details = True
        put = wire._PutEvents

        def record(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            status, answer = put(body)
            for entry, result in zip(body["Entries"], answer["Entries"], strict=True):
                if "EventId" in result:
                    detail = json.loads(entry["Detail"])
                    self.taken.append(
                        (detail["message"]["sid"], detail["message"]["status"], detail.get("deduplication"))
                    )
                    if self.keeps_details:
                        self.details.append(detail | {"detail-type": entry["DetailType"]})
            return status, answer

        wire._PutEvents = record  # type: ignore[method-assign]

    @property
    def sids(self) -> list[str]:
        """The SIDs of the events, in order."""
        return [sid for sid, _, _ in self.taken]

    def times(self, sid: str, status: str) -> tuple[int, int]:
        """Return how often an event was published without a mark, and how often with one."""
        marks = [mark for *about, mark in self.taken if about == [sid, status]]
        return marks.count(None), len(marks) - marks.count(None)


@pytest.fixture
def bus(aws_wire: AwsWire) -> Bus:
    """Return a bus that records the events that it takes."""
    return Bus(aws_wire)


class Memory:
    """AWS without a network and without retries. `before` is called before each call."""

    def __init__(self, wire: AwsWire) -> None:
        self.before: Callable[[str], object] = lambda _: None
        self._wire = wire

    def exchange(
        self, _: str, __: str, headers: Mapping[str, str], body: bytes, ___: float, **____: float
    ) -> http.Reply:
        """Answer a request."""
        name = headers["X-Amz-Target"].rpartition(".")[2]
        self.before(name)
        status, answer = self._wire.answer(name, json.loads(body))
        reply = http.Reply(status, {}, json.dumps(answer).encode())
        if status == LOST[0]:
            raise client.AwsResponseLostError("lost")
        if status != 200:
            raise client._refusal(reply)
        return reply


@pytest.fixture
def memory(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Replace the network to AWS by calls in memory, for tests with thousands of calls."""
    memory = Memory(aws_wire)
    monkeypatch.setattr(client, "_exchange", memory.exchange)
    monkeypatch.setattr(
        client, "_SERVICES", {name: each._replace(attempts=1) for name, each in client._SERVICES.items()}
    )
    return memory


def run(seconds: float = 300, **wanted: Any) -> dict[str, Any]:
    """Run the function as its schedule does, and return its answer."""
    return dict(handler(wanted, Context(seconds)))


def answer(seen: int, published: int, *, complete: bool = True) -> dict[str, Any]:
    """Return the answer that a run gives."""
    return {"seen": seen, "published": published, "complete": complete}


def bounds(twilio: FaultServer) -> list[dict[str, str]]:
    """Return the queries of the requests for pages, without the page size."""
    queries = [request.parameters for request in twilio.requests if request.path == f"{MESSAGES}.json"]
    return [{name: value for name, (value,) in query.items() if name != "PageSize"} for query in queries]


def iso(date: datetime) -> str:
    """Return a date in the form of Twilio's filters."""
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")


def progress(aws_wire: AwsWire) -> dict[str, Any]:
    """Return the progress that the table has."""
    return dict(json.loads(aws_wire.deliveries[KEY]["progress"]["S"]))


# What is published


@pytest.mark.usefixtures("twilio", "clock")
def test_the_event_file_is_taken(event: LoadEvent, bus: Bus) -> None:
    """The example event, which is the input from a schedule, is accepted."""
    assert answer(0, 0) == handler(event("poll_messages"), Context(300))
    assert [] == bus.taken


def test_a_status_is_told_as_by_the_webhook(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A status is published with the fields of the webhook's events; `parameters` is Twilio's unchanged message."""
    sid = twilio.history(0).add(
        clock.ago(hours=1), status="undelivered", error_code=30003, body="Hello", messaging_service_sid="MG" + "0" * 32
    )

    assert answer(1, 1) == run()
    (detail,) = bus.details
    assert "Message Status Changed" == detail.pop("detail-type")
    assert {"sid": sid, "uri": f"{MESSAGES}/{sid}.json", "num_media": "0"}.items() <= detail.pop("parameters").items()
    assert detail.pop("received_at")
    assert {
        "connection": "default",
        "account_sid": ACCOUNT_SID,
        "deduplication_id": f"{ACCOUNT_SID}:{sid}:undelivered",
        "url": f"{twilio.url}{MESSAGES}/{sid}.json",
        "message": {
            "sid": sid,
            "from": "+15005550006",
            "to": "+15550100000",
            "body": "Hello",
            "status": "undelivered",
            "error_code": 30003,
            "opt_out_type": None,
            "messaging_service_sid": "MG" + "0" * 32,
            "num_media": 0,
            "media": [],
            "status_rank": 6,
            "terminal": True,
        },
    } == detail


def test_a_message_to_us_is_told_with_its_media(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """An inbound message is published with its media, at the same URLs as in the webhook's events."""
    sid = twilio.history(0).add(
        clock.ago(hours=1), status="received", direction="inbound", media=["image/png", "text/vcard"]
    )

    assert answer(1, 1) == run()
    (detail,) = bus.details
    about = detail["message"]
    assert ("Message Received", 2, "received") == (detail["detail-type"], about["num_media"], about["status"])
    assert {"status_rank", "terminal"}.isdisjoint(about)
    assert [
        {"url": f"{twilio.url}{MESSAGES}/{sid}/Media/ME{sid[2:28]}{number:06x}", "content_type": content_type}
        for number, content_type in enumerate(["image/png", "text/vcard"])
    ] == about["media"]


@pytest.mark.usefixtures("aws_wire")
def test_urls_are_those_of_the_region(aws_wire: AwsWire) -> None:
    """The URLs of messages have the host of the connection's region, unless a setting names another host."""
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY | {"region": "ie1"})
    sid = "SM" + "0" * 32
    account = Account(Twilio(None, Deadline(60)), ACCOUNT_SID)

    assert f"https://api.dublin.ie1.twilio.com{MESSAGES}/{sid}" == account.url(sid)


def test_media_that_we_send_are_not_asked_for(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """Media of outbound messages are not requested, because the webhook's events do not have them either."""
    twilio.history(0).add(clock.ago(hours=1), media=["image/png"])
    run()

    assert ([], 1) == (bus.details[0]["message"]["media"], len(twilio.requests))


def test_a_message_that_is_still_being_received_is_told_once(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A message that is still `receiving` is published once, as `received`, which is also what the webhook does."""
    history = twilio.history(0)
    sid = history.add(clock.ago(minutes=2), status="receiving", direction="inbound")
    run()
    history.update(sid, clock.date, status="received")
    clock.now += 60
    run()

    assert [(sid, "received", None)] == bus.taken


def test_all_of_a_message_may_be_null(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A message's fields may be null, except its SID, its date and the status, which deduplication needs."""
    nothing: dict[str, Any] = dict.fromkeys(
        ["from", "to", "body", "direction", "num_media", "error_code", "date_updated"]
    )
    sid = twilio.history(0).add(clock.ago(hours=1), **nothing)

    assert answer(1, 1) == run()
    assert (sid, None, 0) == tuple(bus.details[0]["message"][name] for name in ("sid", "body", "num_media"))


@pytest.mark.parametrize("date", ["", "yesterday", 5, "Thu, 99 Foo 2026 99:99:99 +0000"])
def test_a_date_that_is_none_is_none(twilio: FaultServer, clock: Clock, bus: Bus, date: object) -> None:
    """A message with an invalid date is not published, and does not stop the other messages."""
    row = {"sid": "SM" + "1" * 32, "date_sent": date}
    good = {"sid": "SM" + "2" * 32, "date_sent": format_datetime(clock.ago(hours=1))}
    twilio.script(faults.answer(json.dumps({"messages": [row, good]}).encode(), code=200))

    assert answer(2, 1) == run()
    assert ["SM" + "2" * 32] == bus.sids


def test_webhook_and_polling_publish_once(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """Webhook and polling together publish a status once, in either order."""
    history = twilio.history(0)
    sids = [history.add(clock.ago(hours=1), status="delivered"), history.add(clock.ago(hours=1), status="sent")]

    def deliver(sid: str, status: str) -> None:
        parameters = {"MessageSid": sid, "MessageStatus": status, "From": "+15005550006", "To": "+15550100000"}
        origin = events.Origin("default", ACCOUNT_SID, "https://hooks.example.com/webhook")
        about = {"sid": sid, "status": status, "opt_out_type": None}
        event = events.of_message(origin, about, parameters)
        publisher.publish([event], Deadline(60))

    deliver(sids[0], "delivered")
    assert answer(2, 1) == run()
    deliver(sids[1], "sent")

    assert [(sids[0], "delivered", None), (sids[1], "sent", None)] == bus.taken


# Where a scan begins


def test_the_first_run_brings_no_flood(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """The first run goes back as far as any other run, so that it publishes no flood of old messages."""
    history = twilio.history(0)
    history.add(clock.ago(seconds=OVERLAP_SECONDS + 1))
    sid = history.add(clock.ago(seconds=OVERLAP_SECONDS))
    run()

    assert [sid] == bus.sids
    assert [{"DateSent>": iso(clock.ago(seconds=OVERLAP_SECONDS))}] == bounds(twilio)


@pytest.mark.parametrize(
    ("since", "bound"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01T01:00:00.9+01:00", "2026-01-01T00:00:00Z"),
        ("2000-01-01T00:00:00Z", iso(NEWEST - timedelta(days=400))),
        ("0001-01-01T00:00:00Z", iso(NEWEST - timedelta(days=400))),
        ("2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_the_first_run_begins_where_it_is_told(twilio: FaultServer, since: str, bound: str) -> None:
    """The first run begins at `since`, but at most 400 days ago: Twilio's list goes back no further."""
    run(since=since)

    assert [{"DateSent>": bound}] == bounds(twilio)


def test_the_first_beginning_is_the_only_one(twilio: FaultServer, clock: Clock) -> None:
    """Only the first `since` counts, because a schedule sends it each time. No later run goes back before it."""
    first = clock.ago(hours=1)
    run(since=iso(first))
    clock.now += 60
    run(since=iso(clock.ago(days=100)))
    for _ in range(2):
        clock.now += DAY
        run()

    assert [iso(first)] * 3 + [iso(clock.ago(seconds=DAY + OVERLAP_SECONDS + SETTLING_SECONDS))] == [
        query["DateSent>"] for query in bounds(twilio)
    ]


def test_a_pass_begins_where_the_one_before_it_began(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A scan starts from the time when the last scan began, not when it ended, so that no message is lost."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(hours=hours)) for hours in range(1, 6)]
    run()
    began = clock.now
    clock.now += 600
    sids.append(history.add(datetime.fromtimestamp(began + 1, UTC)))
    run()

    assert Counter(sids) == Counter(bus.sids)
    bound = datetime.fromtimestamp(began - SETTLING_SECONDS - OVERLAP_SECONDS, UTC)
    assert [iso(NEWEST - timedelta(seconds=OVERLAP_SECONDS)), iso(max(bound, NEWEST - timedelta(hours=18)))] == [
        query["DateSent>"] for query in bounds(twilio) if "PageToken" not in query
    ]


def test_a_long_pause_is_made_good(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """After a pause of days, new and changed messages are published, and old ones are not published again."""
    history = twilio.history(0)
    old, changing, costly = (history.add(clock.ago(hours=1), status="sent") for _ in range(3))
    assert answer(3, 3) == run()
    history.update(changing, clock.date, status="delivered")
    history.update(costly, clock.date, price="-0.00750")
    clock.now += 3 * DAY
    new = history.add(clock.ago(days=2))

    assert answer(4, 2) == run()
    assert (1, 0) == bus.times(old, "sent")
    assert (0, 1) == bus.times(changing, "delivered")
    assert (1, 0) == bus.times(costly, "sent")
    assert (1, 0) == bus.times(new, "sent")


def test_a_filter_that_is_coarser_does_no_harm(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """If Twilio filters by day only, as documented, older messages are skipped, and a page of them ends the scan."""
    clock.now += 60
    history = History(10, spacing=timedelta(hours=5))
    page = json.loads(history.page(Request(1, 0, head=f"GET {MESSAGES}.json HTTP/1.1\r\n\r\n".encode())).body)
    older = page["messages"][4:]
    following = f"{MESSAGES}.json?Page=1&PageToken=PA"
    twilio.script(
        faults.answer(json.dumps(page | {"next_page_uri": following + "1"}).encode(), code=200),
        faults.answer(json.dumps({"messages": older, "next_page_uri": following + "2"}).encode(), code=200),
    )

    assert answer(16, 4) == run()
    assert history.sids[:4] == bus.sids
    assert 2 == len(twilio.requests)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01"}, "since"),
        ({"since": 5}, "since"),
        ({"connection": "../x"}, "connection"),
        ({"conection": "x"}, "conection"),
        ({"until": "2026-01-01T00:00:00Z"}, "until"),
    ],
)
def test_a_wrong_input_is_refused(twilio: FaultServer, aws_wire: AwsWire, wanted: dict[str, Any], field: str) -> None:
    """An invalid input is refused: the error names the field, and neither Twilio nor AWS is called."""
    with pytest.raises(InvalidInputError) as refusal:
        run(**wanted)

    assert [field] == [fault.field for fault in refusal.value.faults]
    assert ([], []) == (twilio.requests, aws_wire.calls)


# Which changes are due


def test_what_is_remembered_outlasts_what_is_looked_at() -> None:
    """The table remembers events for longer than scans go back.

    The margin allows five hours between two scans, and clocks that are an hour wrong.
    """
    assert RETENTION_SECONDS >= DAY == REMEMBERED_SECONDS + HOUR == OVERLAP_SECONDS + 6 * HOUR
    assert 0 < SETTLING_SECONDS < OVERLAP_SECONDS


LAST, NOW = 1000 * HOUR, 1010 * HOUR


@pytest.mark.parametrize(
    ("sent", "updated", "watermark", "moved", "due"),
    [
        (1009, 1009, 1000, 1010, Due.YES),
        (981, 1009, 1000, 1010, Due.NO),  # before `since`
        (1009, 1010, 1000, 1010, Due.NO),  # the next scan publishes it
        (991.9, 1010, 1000, 1010, Due.YES),  # the next scan does not read it
        (988, 988, 1000, 1010, Due.YES),  # the table has its events
        (986, 999.9, 1000, 1010, Due.NO),
        (986, 1000, 1000, 1010, Due.UNCERTAIN),
        (986, 986, None, 1010, Due.YES),
        (986, 986, None, 986, Due.UNCERTAIN),  # the last run was at work a day ago
        (986, 986, 985, 1010, Due.YES),
        (986, 986, 985, 986, Due.UNCERTAIN),
        (988, 988, 985, 986, Due.YES),
    ],
)
def test_what_is_due(sent: float, updated: float, watermark: float | None, moved: float, due: Due) -> None:
    """`decide` says which changes are due. All times are in hours; the scan reads messages sent since hour 982."""
    progress = Progress(
        since=0,
        watermark=None if watermark is None else int(watermark * HOUR),
        current=Scan(since=982 * HOUR, until=NOW, moved_at=int(moved * HOUR)),
    )

    assert due is decide(sent * HOUR, updated * HOUR, progress, NOW)


def test_without_a_pass_nothing_is_due() -> None:
    """Nothing is due without a scan, because there is no range to compare with."""
    assert Due.NO is decide(NOW, NOW, Progress(since=0), NOW)


def test_what_changed_just_now_waits(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A message that changed just now is left to the next run.

    Its webhook, which has more fields, may still come. If none comes, the next run publishes it.
    """
    sid = twilio.history(0).add(clock.ago(seconds=SETTLING_SECONDS))
    assert answer(1, 0) == run()
    clock.now += 60

    assert answer(1, 1) == run()
    assert [sid] == bus.sids


def test_what_is_not_sent_has_no_place(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A message without a date is published once it is sent.

    Its date may then be earlier than the run that did not see it.
    """
    history = twilio.history(0)
    sid = history.add(None, status="scheduled")
    assert answer(0, 0) == run()
    clock.now += HOUR
    run()
    history.update(sid, clock.date, sent=clock.ago(hours=3), status="sent")
    clock.now += 60

    assert answer(1, 1) == run()
    assert [(sid, "sent", None)] == bus.taken


def test_a_status_is_seen_as_long_after_it_was_sent_as_promised(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A status is published up to `OVERLAP_SECONDS` after the send, to the second, and no later."""
    history = twilio.history(0)
    run()
    sids = [history.add(clock.date, status="sent") for _ in range(2)]
    while clock.now < NEWEST.timestamp() + OVERLAP_SECONDS:
        clock.now += HOUR
        run()
    history.update(sids[0], clock.date, status="delivered")
    for _ in range(3):
        clock.now += 20
        run()
    history.update(sids[1], clock.date, status="delivered")
    for _ in range(3):
        clock.now += 20
        run()

    assert (1, 0) == bus.times(sids[0], "delivered")
    assert (0, 0) == bus.times(sids[1], "delivered")


# Cost


@pytest.mark.usefixtures("memory")
def test_what_is_known_costs_a_look(twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus) -> None:
    """Messages that were published before cost one read per hundred.

    Nothing is claimed, published or requested from Twilio for them.
    """
    history = twilio.history(0)
    for number in range(250):
        history.add(
            clock.ago(minutes=number + 1),
            status="received",
            direction="inbound",
            media=["image/png"] * (not number % 50),
        )
    assert answer(250, 250) == run()
    clock.now += 60
    aws_wire.calls.clear()
    requests = len(twilio.requests)

    assert answer(250, 0) == run()
    calls = Counter(name for name, _ in aws_wire.calls)
    assert {"GetItem": 1, "BatchGetItem": 3, "PutItem": 3} == calls
    assert [KEY] * 3 == [body["Item"]["id"]["S"] for name, body in aws_wire.calls if name == "PutItem"]
    assert 1 == len(twilio.requests) - requests
    assert 250 == len(bus.taken)


@pytest.mark.usefixtures("memory")
def test_keys_that_are_left_over_are_asked_for_again(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus, delays: list[float]
) -> None:
    """Keys that DynamoDB leaves unprocessed are requested again."""
    history = twilio.history(0)
    for number in range(10):
        history.add(clock.ago(minutes=number + 1))
    run()
    clock.now += 60
    aws_wire.unprocessed = [10, 7, 3]

    assert answer(10, 0) == run()
    assert (5, 3, 10) == (aws_wire.count("BatchGetItem"), len(delays), len(bus.taken))


@pytest.mark.usefixtures("memory")
def test_a_table_that_always_leaves_keys_over_is_away(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus, delays: list[float]
) -> None:
    """If DynamoDB always leaves keys unprocessed, the run fails, and the next run reads them again."""
    twilio.history(0).add(clock.ago(minutes=1))
    aws_wire.unprocessed = [1] * 5
    with pytest.raises(ServiceUnavailableError):
        run()

    assert ([], 4) == (bus.taken, len(delays))
    assert answer(1, 1) == run()


@pytest.mark.usefixtures("clock")
def test_a_message_that_stands_twice_on_a_page_is_asked_for_once(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A message that is on a page twice is looked up once, because DynamoDB refuses duplicate keys in a request."""
    row = {"sid": "SM" + "1" * 32, "date_sent": format_datetime(clock.ago(hours=1))}
    twilio.script(faults.answer(json.dumps({"messages": [row, row]}).encode(), code=200))

    assert answer(2, 1) == run()
    assert 1 == len(bus.taken)


# AWS is unavailable


@pytest.mark.parametrize("failure", [AWAY, LOST], ids=["refused", "lost"])
@pytest.mark.parametrize("operation", ["GetItem", "BatchGetItem", "PutItem"])
@pytest.mark.usefixtures("delays")
def test_without_the_table_nothing_moves(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus, operation: str, failure: tuple[int, str]
) -> None:
    """Without the table a run fails, and publishes nothing that the table does not record. Waiting loses no message."""
    sid = twilio.history(0).add(clock.ago(hours=1))
    run()
    later = twilio._account.history.add(clock.ago(minutes=5))
    clock.now += 60
    aws_wire.failures[operation] = [failure] * 20
    with pytest.raises(ServiceUnavailableError):
        run()
    aws_wire.failures.clear()
    clock.now += 400
    run()

    assert [(sid, "sent", None), (later, "sent", None)] == bus.taken


@pytest.mark.usefixtures("memory")
def test_a_claim_that_fails_keeps_the_page(twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus) -> None:
    """If a claim fails, the other events of the page are published. The next run publishes the rest, without a mark."""
    history = twilio.history(0)
    sids = [history.add(clock.ago(minutes=minutes)) for minutes in (1, 2, 3)]
    aws_wire.failures["PutItem"] = [PASS, AWAY]  # one of the claims
    with pytest.raises(ServiceUnavailableError, match="could not be claimed"):
        run()
    assert (2, None) == (len(bus.taken), progress(aws_wire)["watermark"])
    run()

    assert {(sid, "sent", None) for sid in sids} == set(bus.taken)
    assert 3 == len(bus.taken)


@pytest.mark.usefixtures("delays")
def test_an_answer_of_the_table_that_is_lost_stops_nobody(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus
) -> None:
    """If the answer to a write is lost, the run continues: the retry finds the run's own write in the table."""
    sid = twilio.history(0).add(clock.ago(minutes=1))
    aws_wire.failures["PutItem"] = [LOST]

    assert answer(1, 1) == run()
    assert [sid] == bus.sids


def kept(aws_wire: AwsWire) -> list[SqsRecord]:
    """Return the records of the buffer."""
    bodies = [body["MessageBody"] for body in aws_wire.sent if body["QueueUrl"].endswith("/buffer")]
    return [SqsRecord(str(number), body) for number, body in enumerate(bodies)]


@pytest.mark.usefixtures("delays")
def test_what_the_bus_does_not_take_is_in_the_buffer(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus
) -> None:
    """An event that the bus refuses goes to the buffer. The run continues, and no other run publishes the event."""
    sid = twilio.history(0).add(clock.ago(minutes=1))
    aws_wire.failures["PutEvents"] = [THROTTLED] * 2

    assert answer(1, 1) == run()
    assert answer(1, 0) == run()
    assert [] == publisher.publish_buffered(kept(aws_wire), Deadline(60))
    assert [(sid, "sent", None)] == bus.taken


@pytest.mark.usefixtures("delays")
def test_without_bus_and_buffer_the_page_stays(twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus) -> None:
    """If bus and buffer are unavailable, the run fails, and a later run publishes the page."""
    sid = twilio.history(0).add(clock.ago(minutes=1))
    aws_wire.failures["PutEvents"] = [THROTTLED] * 2
    aws_wire.failures["SendMessage"] = [AWAY] * 2
    with pytest.raises(ServiceUnavailableError, match="neither on the event bus nor in the buffer"):
        run()
    clock.now += 400
    run()

    assert [sid] == bus.sids


# Time


def test_a_run_goes_on_where_the_one_before_it_ended(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus
) -> None:
    """A run continues at the page where the last run stopped, by Twilio's token.

    New messages are left to the next scan.
    """
    history = twilio.history(0, max_page_size=3)
    sids = [history.add(clock.ago(minutes=minutes)) for minutes in range(1, 9)]
    history.before_page = lambda: setattr(clock, "elapsed", clock.elapsed + 241)
    answers = [run()]
    new = history.add(clock.date)
    clock.now += 60
    answers += [run(), run()]

    assert [answer(0, 0, complete=False)] * 3 == answers  # the time was over once the page had come
    history.before_page = lambda: setattr(clock, "elapsed", clock.elapsed + 100)
    answers = [run()]
    clock.now += 60
    answers += [run()]
    assert [answer(6, 5, complete=False), answer(3, 3)] == answers
    assert sids == bus.sids
    assert [iso(NEWEST - timedelta(seconds=OVERLAP_SECONDS))] == [*{query["DateSent>"] for query in bounds(twilio)}]
    assert [{"PageToken", "Page"}, {"PageToken", "Page"}] == [
        query.keys() - {"DateSent>"} for query in bounds(twilio)[-2:]
    ]
    run()
    assert [*sids, new] == bus.sids
    assert progress(aws_wire)["lease_until"] == 0


@pytest.mark.usefixtures("clock")
def test_too_little_time_is_an_error(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Too little time for a run is an error.

    Otherwise such a function would never make progress, and nobody would notice.
    """
    with pytest.raises(ServiceUnavailableError, match="too little time"):
        run(seconds=59)

    assert ([], 0) == (twilio.requests, aws_wire.count("PutItem"))


def test_time_that_ends_with_media_is_used(
    twilio: FaultServer, clock: Clock, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If time ends while media are read, the finished messages are published, so that each run makes progress."""
    history = twilio.history(0)
    sids = [
        history.add(clock.ago(minutes=minutes), status="received", direction="inbound", media=["image/png"])
        for minutes in range(1, 6)
    ]
    reply = twilio._account.reply

    def slow(request: Request) -> Reply:
        clock.elapsed += 90 * ("Media" in request.path)
        return reply(request)

    monkeypatch.setattr(twilio._account, "reply", slow)

    assert [answer(5, 3, complete=False), answer(5, 2)] == [run(), run()]
    assert sids == bus.sids


def test_time_is_looked_at_every_hundred_messages(twilio: FaultServer, clock: Clock, memory: Memory, bus: Bus) -> None:
    """A run checks its time every hundred messages. It publishes those that it looked up, and leaves the rest."""
    history = twilio.history(0)
    sids = [history.add(clock.ago(minutes=1 + number)) for number in range(250)]
    memory.before = lambda name: setattr(clock, "elapsed", clock.elapsed + 121 * (name == "BatchGetItem"))

    assert answer(200, 200, complete=False) == run()
    memory.before = lambda _: None
    assert answer(250, 50) == run()
    assert sids == bus.sids


def test_time_is_looked_at_before_every_page(twilio: FaultServer, clock: Clock, memory: Memory, bus: Bus) -> None:
    """A run checks its time before each page, and does not request a page that it could not finish."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(minutes=1 + number)) for number in range(3)]
    memory.before = lambda name: setattr(clock, "elapsed", clock.elapsed + 242 * (name == "PutEvents"))

    assert answer(2, 2, complete=False) == run()
    assert 1 == len(bounds(twilio))
    memory.before = lambda _: None
    assert answer(1, 1) == run()
    assert sids == bus.sids


def test_a_pass_may_take_days(twilio: FaultServer, clock: Clock, memory: Memory, bus: Bus) -> None:
    """A scan may take days. Events that a crashed run published are not published again."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(days=3, minutes=minutes)) for minutes in range(10)]
    history.before_page = lambda: setattr(clock, "elapsed", clock.elapsed + 200)
    writes = itertools.count(1)

    def die(name: str) -> None:
        # The sixth write is the progress. Before it come the start, two claims and two notes of published events.
        if name == "PutItem" and next(writes) >= 6:
            raise Crash

    since = iso(clock.ago(days=4))
    for _ in range(3):
        run(since=since)
        clock.now += 20 * HOUR
    memory.before = die
    with pytest.raises(Crash):
        run()
    memory.before = lambda _: None
    clock.now += 25 * HOUR
    answers = [run(), run()]

    assert answer(2, 2) == answers[-1]
    assert [(1, 0)] * 10 == [bus.times(sid, "sent") for sid in sids]


def test_a_pass_reads_the_last_18_hours_again(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A scan reads only the last 18 hours again, however long events are remembered.

    Each page costs a request, and each message a read.
    """
    history = twilio.history(0, max_page_size=1)
    for hours in range(60):
        history.add(clock.ago(hours=hours, minutes=1), status="delivered")
    run(since=iso(clock.ago(hours=61)))
    before = len(twilio.requests)
    clock.now += HOUR

    assert answer(18, 0) == run()
    assert 18 == len(twilio.requests) - before
    assert 60 == len(bus.taken)


@pytest.mark.usefixtures("clock")
def test_twilio_is_not_waited_for_until_the_end(twilio: FaultServer, delays: list[float]) -> None:
    """A run does not wait for Twilio until its time is over, because it must still write its progress."""
    twilio.script(faults.too_many("30"), faults.OK)
    with pytest.raises(TwilioRateLimitError):
        run(seconds=60)

    assert [] == delays
    assert answer(0, 0) == run()


# Media


@pytest.mark.parametrize("status", [404, 403, 400])
def test_media_that_are_gone_hold_nothing_up(twilio: FaultServer, clock: Clock, bus: Bus, status: int) -> None:
    """If Twilio refuses a message's media, the message is published without them; `num_media` keeps their number."""
    sid = twilio.history(0).add(clock.ago(minutes=1), status="received", direction="inbound", media=["image/png"])
    twilio.script(faults.OK, faults.status(status), faults.OK)

    assert answer(1, 1) == run()
    assert [sid] == bus.sids
    assert (1, []) == (bus.details[0]["message"]["num_media"], bus.details[0]["message"]["media"])


@pytest.mark.parametrize("bad", [{}, {"media_list": [{"sid": "../x"}]}, {"media_list": [{"content_type": "x"}]}])
@pytest.mark.usefixtures("delays")
def test_media_that_cannot_be_read_wait(twilio: FaultServer, clock: Clock, bus: Bus, bad: object) -> None:
    """If the answer is not a list of media, the run fails, and the next run retries. A proxy may answer anything."""
    sid = twilio.history(0).add(clock.ago(minutes=1), status="received", direction="inbound", media=["image/png"])
    wrong = faults.answer(json.dumps(bad).encode(), code=200)
    twilio.script(faults.OK, wrong, wrong, wrong, faults.OK)
    with pytest.raises(TwilioUnavailableError):
        run()
    assert [] == bus.taken
    run()

    assert ([sid], 1) == (bus.sids, len(bus.details[0]["message"]["media"]))


# Invalid next pages


@pytest.mark.parametrize(
    ("evil", "requests"),
    [
        ("foreign_host", 1),
        ("other_account", 1),
        ("self_loop", 1),
        ("two_page_loop", 2),
        ("repeated_page", 2),
        ("empty_pages", 2),
    ],
)
@pytest.mark.usefixtures("delays")
def test_pages_that_lead_nowhere_are_an_error(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus, evil: Any, requests: int
) -> None:
    """An invalid next page is an error in each run, because the scan is not complete. No event is published twice."""
    twilio.history(10, evil=evil, max_page_size=3)
    for _ in range(3):
        with pytest.raises(TwilioUnavailableError, match="next page"):
            run()
        clock.now += 60

    assert requests + 2 >= len(twilio.requests)
    assert None is progress(aws_wire)["watermark"]
    assert len(set(bus.taken)) == len(bus.taken)


def test_a_circle_is_found_over_many_runs(
    twilio: FaultServer, clock: Clock, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A circle of pages is found over many runs, each of which reads one page. The progress remembers one page."""
    sent = format_datetime(clock.ago(hours=1))

    def circle(request: Request) -> Reply:
        clock.elapsed += 200
        number = int(request.parameters.get("PageToken", ["PA0"])[0][2:])
        uri = f"{MESSAGES}.json?PageToken=PA{number + 1 if number < 6 else 2}"
        row = {"sid": f"SM{number:032x}", "date_sent": sent}
        return Reply.json(200, {"messages": [row], "next_page_uri": uri})

    monkeypatch.setattr(twilio._account, "reply", circle)

    def go_round() -> None:
        for _ in range(20):
            run()

    with pytest.raises(TwilioUnavailableError, match="already read"):
        go_round()

    assert [f"SM{number:032x}" for number in range(7)] == bus.sids


def test_a_page_that_twilio_refuses_is_found_by_date(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """If Twilio refuses a page, the scan restarts by date.

    A page's token names a message, which may have been deleted since.
    """
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(minutes=minutes // 2)) for minutes in range(2, 12)]
    pages: list[int] = []

    def delete() -> None:
        pages.append(1)
        if len(pages) in {2, 6}:
            history.remove(bus.sids[-1])

    history.before_page = delete
    run()

    assert sids == bus.sids
    assert [iso(clock.ago(minutes=1)), iso(clock.ago(minutes=4))] == [
        *dict.fromkeys(query["DateSent<"] for query in bounds(twilio) if "DateSent<" in query)
    ]


def test_a_page_found_by_date_may_lead_to_the_same_token(
    twilio: FaultServer, clock: Clock, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that was found by date may lead to the same token again; this is not a circle."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(minutes=minutes)) for minutes in (1, 1, 2, 2)]
    reply = twilio._account.reply
    refused = [Reply.json(400, {"code": 21481, "message": "Invalid page token", "status": 400})]
    monkeypatch.setattr(
        twilio._account,
        "reply",
        lambda each: refused.pop() if refused and "PageToken" in each.parameters else reply(each),
    )

    assert answer(6, 4) == run()
    assert sids == bus.sids


def test_tokens_that_are_always_refused_come_to_an_end(
    twilio: FaultServer, clock: Clock, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Twilio refuses all tokens, the scan continues by date as long as the dates differ, and then fails."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(minutes=minutes)) for minutes in (1, 2, 3, 4, 4, 4)]
    reply = twilio._account.reply
    refused = Reply.json(400, {"code": 21481, "message": "Invalid page token", "status": 400})
    monkeypatch.setattr(
        twilio._account, "reply", lambda each: refused if "PageToken" in each.parameters else reply(each)
    )
    with pytest.raises(TwilioRejectedError):
        run()

    assert sids[:5] == bus.sids
    assert len(twilio.requests) < 20


def test_a_first_page_that_is_refused_is_an_error(twilio: FaultServer) -> None:
    """If Twilio refuses the first page, the run fails, because no other request leads to this page."""
    twilio.script(faults.status(400))
    with pytest.raises(TwilioRejectedError):
        run()

    assert 1 == len(twilio.requests)


# Two runs, two accounts


def test_a_second_run_leaves_the_first_one_alone(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus
) -> None:
    """A second run ends at once while the first one is at work, and sends no request to Twilio."""
    history = twilio.history(0)
    sid = history.add(clock.ago(minutes=1))
    answers: list[dict[str, Any]] = []

    def again() -> None:
        history.before_page = lambda: None
        clock.now += 60
        answers.append(run())

    history.before_page = again
    answers.append(run())

    assert [answer(0, 0, complete=False), answer(1, 1)] == answers
    assert ([sid], 1, []) == (bus.sids, len(twilio.requests), aws_wire.sent)


def test_a_run_that_was_overtaken_stops(twilio: FaultServer, clock: Clock, bus: Bus) -> None:
    """A run that another run overtook after its lease stops after its page, whose events are published once."""
    history = twilio.history(0, max_page_size=2)
    sids = [history.add(clock.ago(minutes=minutes)) for minutes in range(1, 6)]
    answers: list[dict[str, Any]] = []

    def overtake() -> None:
        history.before_page = lambda: None
        clock.now += 301
        answers.append(run())

    history.before_page = overtake
    answers.append(run())

    assert [answer(5, 5), answer(2, 0, complete=False)] == answers
    assert sids == bus.sids


def test_each_connection_has_its_own_progress(twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus) -> None:
    """Each connection and account has its own progress, so a connection with a new account starts over."""
    other = "AC" + "1" * 32
    aws_wire.secrets["twilio/other"] = json.dumps(API_KEY | {"account_sid": other})
    twilio.history(0).add(clock.ago(minutes=1))
    run()
    run(connection="other")

    assert {KEY, f"polling:other:{other}"} <= aws_wire.deliveries.keys()
    assert [ACCOUNT_SID, other] == [detail["account_sid"] for detail in bus.details]
    assert ["default", "other"] == [detail["connection"] for detail in bus.details]


@pytest.mark.usefixtures("clock")
def test_progress_does_not_expire(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The progress does not expire, because a pause would then lose messages."""
    run()

    assert {"id", "revision", "progress"} == aws_wire.deliveries[KEY].keys()
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "damage", [{"progress": {"S": "{"}}, {"progress": {"S": "{}"}}, {"revision": {"N": "1"}}], ids=str
)
@pytest.mark.usefixtures("clock")
def test_damaged_progress_is_told(twilio: FaultServer, aws_wire: AwsWire, damage: dict[str, Any]) -> None:
    """Corrupt progress is an error, because the run must not guess where to continue."""
    run()
    aws_wire.deliveries[KEY] |= damage
    with pytest.raises(InternalError, match="corrupt"):
        run()

    assert 1 == len(twilio.requests)


@pytest.mark.usefixtures("delays")
def test_one_failure_is_one_line(twilio: FaultServer, log: Log, clock: Clock) -> None:
    """A failed run is one log line, with the connection and without the text of a message."""
    twilio.history(0).add(clock.ago(minutes=1), body="unique text")
    twilio.script(faults.status(503))
    with pytest.raises(TwilioUnavailableError):
        run()

    (line,) = log()
    about = {"error": "TwilioUnavailableError", "function": "poll_messages", "connection": "default"}
    assert about.items() <= line.items()
    assert "unique text" not in json.dumps(line)


# Faults at each call


def settle(clock: Clock, aws_wire: AwsWire, runs: int = 6) -> None:
    """Run several times, then publish the records in the buffer."""
    for _ in range(runs):
        clock.now += 400
        run()
    records = kept(aws_wire)
    for _ in range(3):
        clock.now += 400
        records = publisher.publish_buffered(records, Deadline(60))
    assert [] == records


_PAGES = {"list": [0, 2, 4], "media": [1, 3]}
"""The positions of each kind of request: of three pages, the first two have a message with media."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["refused", "lost"])
@pytest.mark.parametrize("operation", ["GetItem", "PutItem", "BatchGetItem", "PutEvents", "list", "media"])
@pytest.mark.usefixtures("delays", "memory")
def test_a_fault_at_any_call_makes_no_gap(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus, operation: str, kind: str
) -> None:
    """A fault at any call loses no event, and makes no duplicate without a mark.

    Only a lost answer of the bus, or a failed write to the table, makes a duplicate with a mark.
    """
    is_over = False
    at = 0
    while not is_over:
        for each in (aws_wire.deliveries, aws_wire.calls, bus.taken):
            each.clear()
        twilio.reset()
        history = twilio.history(0, max_page_size=2)
        sids = {history.add(clock.ago(minutes=minutes)) for minutes in range(1, 5)}
        inbound: dict[str, Any] = {"status": "received", "direction": "inbound", "media": ["image/png"]}
        sids |= {history.add(clock.ago(minutes=minutes), **inbound) for minutes in range(1, 3)}
        if operation in _PAGES:
            bad = faults.status(503) if kind == "refused" else faults.RESET_AFTER_READ
            twilio.script(*[faults.OK] * _PAGES[operation][at], bad, bad, bad, faults.OK)
            is_over = at + 1 == len(_PAGES[operation])
        else:
            aws_wire.failures = {operation: [PASS] * at + [THROTTLED if kind == "refused" else LOST]}
        for _ in range(3):
            with suppress(ConnectorError):
                run()
            clock.now += 60
        is_over = is_over or bool(aws_wire.failures.get(operation))
        aws_wire.failures.clear()
        settle(clock, aws_wire, runs=2)
        counts = {sid: bus.times(sid, "received" if sid.startswith("MM") else "sent") for sid in sids}

        assert sids == set(bus.sids), f"gap after {operation} {at}"
        assert all(plain <= 1 for plain, _ in counts.values()), f"double after {operation} {at}"
        if operation != "PutItem" and (operation, kind) != ("PutEvents", "lost"):
            assert {(1, 0)} == set(counts.values())
        at += 1
    assert at > 1


# All events in any order


AGES = st.sampled_from([0, 20, 600, 3 * HOUR, *(OVERLAP_SECONDS - seconds for seconds in (1, 29, 31, 90, 500, HOUR))])
"""How long ago a message was sent, in seconds. An error of seconds shows at the edges of a scan's range."""


class World(NamedTuple):
    """The fixtures that the state machine uses."""

    twilio: FaultServer
    wire: AwsWire
    clock: Clock
    bus: Bus
    memory: Memory


class Polling(RuleBasedStateMachine):
    """The state machine: an account is polled while messages arrive, change and get late dates.

    Runs crash, fail, run out of time or do not start.
    """

    world: ClassVar[World]

    def __init__(self) -> None:
        """Start with an account without messages."""
        super().__init__()
        self.twilio, self.wire, self.clock, self.bus = self.world[:4]
        for each in (self.wire.deliveries, self.wire.failures, self.wire.calls, self.bus.taken):
            each.clear()
        self.twilio.reset()
        self.history = self.twilio.history(0, max_page_size=2)
        self.clock.now = NEWEST.timestamp()
        self.sent: dict[str, datetime | None] = {}
        self.statuses: dict[str, tuple[str, float]] = {}
        """The status of each message, and the time since which the list has it."""
        self.changed: dict[str, float] = {}
        self.is_calm = True
        """Whether nothing failed, and no pause was too long."""
        self.latest = self.clock.now
        self.between: list[Callable[[], object]] = []
        self.drained = 0
        self.go(20)

    # What can happen

    @initialize(ages=st.lists(AGES, min_size=3, max_size=6))
    def begin(self, ages: list[int]) -> None:
        """Start with some messages."""
        self.add(ages, are_sent=True)

    @rule(ages=st.lists(AGES, min_size=1, max_size=4), are_sent=st.booleans())
    def add(self, ages: list[int], *, are_sent: bool) -> None:
        """Add messages that were sent now or a while ago, or that are scheduled."""
        for age in ages:
            date = self.clock.ago(seconds=age) if are_sent else None
            sid = self.history.add(date, date_updated=format_datetime(self.clock.date))
            self.sent[sid] = date
            self._has(sid, "sent" if are_sent else "queued")

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 99), age=AGES)
    def date_late(self, which: int, age: int) -> None:
        """Give a scheduled message its date, which may be in the past."""
        if (sid := self._any(which)) and self.sent[sid] is None:
            self.sent[sid] = self.clock.ago(seconds=age)
            self.history.update(sid, self.clock.date, sent=self.sent[sid], status="sent")
            self._has(sid, "sent")

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 99), status=st.sampled_from(["sent", "delivered", "undelivered", "read"]))
    def change(self, which: int, status: str) -> None:
        """Give a message another status, or update it without a new status, as a price does."""
        if (sid := self._any(which)) and self.sent[sid]:
            self.history.update(sid, self.clock.date, status=status)
            if status != self.statuses[sid][0]:
                self._has(sid, status)
            self.changed[sid] = self.clock.now

    @rule(
        data=st.data(),
        what=st.lists(st.sampled_from(["nothing", "add", "late", "delivered", "read"]), min_size=1, max_size=4),
    )
    def between_pages(self, data: st.DataObject, what: list[str]) -> None:
        """Let changes happen between the next pages."""
        for each in what:
            which, age, seconds = data.draw(st.integers(0, 99)), data.draw(AGES), data.draw(st.integers(0, 40))

            def happen(each: str = each, which: int = which, age: int = age, seconds: int = seconds) -> None:
                self.clock.now += seconds
                if each == "add":
                    self.add([age], are_sent=True)
                elif each == "late":
                    self.date_late(which, age)
                elif each != "nothing" and self.sent:
                    self.change(which, each)

            self.between.append(happen)

    @rule(seconds=st.sampled_from([1, 29, 31, 60, 600, 2 * HOUR]))
    def go_on(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.now += seconds

    @rule(hours=st.sampled_from([7, 25, 60]))
    def pause(self, hours: int) -> None:
        """Let hours pass without a run."""
        self.clock.now += hours * HOUR

    @rule(seconds=st.sampled_from([0, 60, 400]))
    def run(self, seconds: int) -> None:
        """Run the function as its schedule does."""
        self.clock.now += seconds
        self.go(1000)

    @rule(calls=st.integers(4, 60))
    def run_short(self, calls: int) -> None:
        """Run until the time is over after this many calls."""
        self.add([600, 600, 600], are_sent=True)
        self.go(calls)

    @rule(calls=st.integers(2, 60))
    def crash(self, calls: int) -> None:
        """Run until the function crashes at a call."""
        self.add([600, 600, 600], are_sent=True)
        self.is_calm = False
        self.go(1000, crash_at=calls)

    @rule(
        operation=st.sampled_from(["GetItem", "PutItem", "BatchGetItem", "PutEvents", "SendMessage"]),
        failure=st.sampled_from([THROTTLED, AWAY, LOST]),
        at=st.integers(0, 9),
        times=st.sampled_from([1, 2, 30]),
    )
    def fail(self, operation: str, failure: tuple[int, str], at: int, times: int) -> None:
        """Run while an AWS service is unavailable for some calls."""
        self.add([600, 600, 600], are_sent=True)
        self.is_calm = False
        self.wire.failures[operation] = [PASS] * at + [failure] * times
        self.go(1000)
        self.wire.failures.clear()

    @rule(failing=st.integers(0, 3))
    def fail_at_twilio(self, failing: int) -> None:
        """Run while Twilio is unavailable after some requests."""
        self.twilio.script(*[faults.OK] * failing, faults.status(503))
        self.go(1000)
        self.twilio.script(faults.OK)

    # How the actions work

    def go(self, calls: int, crash_at: int | None = None) -> None:
        """Run the function, and check the published events once a scan is complete."""
        number = itertools.count(1)

        def before(_: str) -> None:
            count = next(number)
            if crash_at is not None and count >= crash_at:
                raise Crash
            self.clock.elapsed += 241 * (count == calls)

        def before_page() -> None:
            if self.between:
                self.between.pop(0)()

        # Events are remembered for 23 hours at least, and scans go back 18 hours, so a pause may take five hours.
        self.is_calm = self.is_calm and self.clock.now - self.latest < 5 * HOUR
        self.world.memory.before, self.history.before_page = before, before_page
        pass_began = self.current("until") or self.clock.now - SETTLING_SECONDS
        try:
            complete = run()["complete"]
        except (Crash, ConnectorError):
            complete = False
        self.world.memory.before = lambda _: None
        if complete:
            self.is_whole(pass_began)
            self.latest = pass_began

    def current(self, name: str) -> Any:
        """Return a field of the unfinished scan, or None."""
        item = self.wire.deliveries.get(KEY)
        current = json.loads(item["progress"]["S"])["current"] if item else None
        return current and current[name]

    def drain(self) -> None:
        """Publish the records in the buffer until none is left."""
        records, self.drained = kept(self.wire)[self.drained :], len(kept(self.wire))
        while records:
            self.clock.now += 400
            records = publisher.publish_buffered(records, Deadline(60))

    def is_whole(self, until: float) -> None:
        """Assert that a scan published all changes from before its start that were still in its range."""
        kept_too = {
            (about["sid"], about["status"])
            for record in kept(self.wire)
            for about in [json.loads(record.body)["detail"]["message"]]
        }
        published = {(sid, status) for sid, status, _ in self.bus.taken} | kept_too
        missing = {
            (sid, status)
            for sid, (status, since) in self.statuses.items()
            if (sent := self.sent[sid]) and max(since, self.changed[sid]) < until
            if sent.timestamp() >= NEWEST.timestamp() - OVERLAP_SECONDS
            if since <= sent.timestamp() + OVERLAP_SECONDS
        }  # fmt: skip
        assert missing <= published, "a gap"

    @invariant()
    def is_once(self) -> None:
        """Assert that a duplicate has the mark `uncertain`, and that there is none while nothing failed."""
        plain = Counter((sid, status) for sid, status, mark in self.bus.taken if mark is None)

        assert all(count == 1 for count in plain.values()), "a double"
        assert {mark for *_, mark in self.bus.taken} <= {None, "uncertain"}, "one that could have waited"
        assert not self.is_calm or len(plain) == len(self.bus.taken) == len(set(self.bus.taken)), "an uncertain one"

    def teardown(self) -> None:
        """Publish all events that are left, and check that none is a duplicate without a mark."""
        self.between.clear()
        for _ in range(3):
            self.clock.now += 400
            self.go(1000)
        self.drain()
        self.is_once()
        self.clock.elapsed = 0

    def _any(self, which: int) -> str | None:
        return [*self.sent][which % len(self.sent)] if self.sent else None

    def _has(self, sid: str, status: str) -> None:
        self.statuses[sid] = (status, self.clock.now)
        self.changed[sid] = self.clock.now


@pytest.mark.exhaustive
@pytest.mark.usefixtures("delays")
def test_whatever_happens_there_is_no_gap_and_no_double(
    twilio: FaultServer, aws_wire: AwsWire, clock: Clock, memory: Memory, bus: Bus
) -> None:
    """In any order of events, which Hypothesis chooses, no event is lost and no duplicate is without a mark."""
    bus.keeps_details = False
    Polling.world = World(twilio, aws_wire, clock, bus, memory)
    run_state_machine_as_test(
        Polling,
        settings=settings(max_examples=80, stateful_step_count=30, suppress_health_check=[*HealthCheck]),
    )


# A long history


def churn(history: History, clock: Clock, number: int) -> list[str]:
    """Change the list as between two pages, and return the SIDs of two new messages.

    The second message has no date yet. One message gets a new status, and another one a price.
    """
    sids = [history.add(clock.date), history.add(None)]
    listed = history.sids
    history.update(listed[number % 500], clock.date, status="delivered")
    history.update(listed[-1 - number % 500], clock.date, price="-0.00750")
    return sids


@pytest.mark.exhaustive
@pytest.mark.timeout(600)  # for 25,000 messages
@pytest.mark.usefixtures("delays", "memory")
def test_a_long_history_is_worked_through(twilio: FaultServer, aws_wire: AwsWire, clock: Clock, bus: Bus) -> None:
    """Several runs publish 25,000 messages without a gap, while new messages arrive and all kinds of faults happen."""
    bus.keeps_details = False
    history = twilio.history(25_000, spacing=timedelta(minutes=5))
    old = history.sids
    unsent: list[str] = []
    sent: list[str] = []
    pages: list[int] = []

    def go_on() -> None:
        pages.append(1)
        clock.now += 20
        clock.elapsed += 40  # a run has time for six pages
        if len(pages) <= 20:
            new, late = churn(history, clock, len(pages))
            sent.append(new)
            unsent.append(late)
            if len(unsent) > 3:
                sent.append(sid := unsent.pop(0))
                history.update(sid, clock.date, sent=clock.ago(minutes=30), status="sent")

    history.before_page = go_on
    failing = iter(["BatchGetItem", "PutEvents", "PutItem", "SendMessage", "GetItem"] * 2)
    answers: list[dict[str, Any]] = []
    for _ in range(60):
        if failure := next(failing, None):
            aws_wire.failures[failure] = [PASS] * (len(answers) % 7) + [THROTTLED] * 2
        with suppress(ConnectorError):
            answers.append(run(since="2025-09-01T00:00:00Z"))
        aws_wire.failures.clear()
        clock.now += 330
        if answers and answers[-1]["complete"] and not failure:
            break
    settle(clock, aws_wire, runs=2)

    assert 5 < len(answers) < 60
    assert set(old) | set(sent) == set(bus.sids)
    assert set(unsent).isdisjoint(bus.sids)
    plain = Counter((sid, status) for sid, status, mark in bus.taken if mark is None)
    assert {1} == set(plain.values())
    marked = [mark for *_, mark in bus.taken if mark]
    assert {"uncertain"} >= set(marked)
    assert len(marked) <= 100  # events of the chunks for which the table could not be written after the bus took them


@pytest.mark.exhaustive
@pytest.mark.usefixtures("memory")
def test_memory_does_not_grow_with_the_history(
    aws_wire: AwsWire, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory does not grow with the history: one page is loaded at a time.

    Twilio answers without a server, because a server's threads would be measured, too.
    """
    reply = aws_wire.answer
    count = 0
    fields: dict[str, Any] = {name: {"N": str(int(clock.now) + DAY)} for name in ("lease_until", "expires_at")}
    fields |= {"state": {"S": "done"}, "nonce": {"S": ""}, "uncertain": {"BOOL": False}}

    def forget(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer as an AWS that stores nothing, because its memory would be measured. One in 16 events is unknown."""
        if operation == "PutItem":
            return 200, {}
        if operation == "PutEvents":
            return 200, {"Entries": [{"EventId": ""}] * len(body["Entries"])}
        if operation != "BatchGetItem":
            return reply(operation, body)
        keys = body["RequestItems"]["deliveries"]["Keys"]
        return 200, {"Responses": {"deliveries": [key | fields for key in keys if key["id"]["S"][0] != "0"]}}

    def page(request: requests.PreparedRequest) -> http.Reply:
        """Answer with a page of a history that is generated page by page."""
        (token,) = parse_qs(urlsplit(str(request.url)).query).get("PageToken", ["PA0"])
        start = int(token.removeprefix("PA"))
        gc.collect()  # the rest of the page before this one must not count in the peak
        sent = format_datetime(clock.ago(hours=1))
        rows = [
            message(ACCOUNT_SID, f"SM{number:032x}") | {"date_sent": sent, "date_updated": sent}
            for number in range(start, start + 1000)
        ]
        uri = f"{MESSAGES}.json?PageToken=PA{start + 1000}" if start + 1000 < count else None
        return http.Reply(200, {}, json.dumps({"messages": rows, "next_page_uri": uri}).encode())

    monkeypatch.setattr(aws_wire, "answer", forget)
    answer_requests(monkeypatch, page)

    def peak(messages: int) -> int:
        """Return the peak memory of a run, in bytes."""
        nonlocal count
        count = messages
        aws_wire.calls.clear()
        gc.collect()
        tracemalloc.start()
        try:
            counts = run()
            assert (count, True) == (counts["seen"], counts["complete"])
            assert count // 32 < counts["published"] < count // 8
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # load what is loaded only once
    few, many = peak(3000), peak(9000)

    assert many < 1.1 * few
