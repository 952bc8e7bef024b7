"""Mutants of genuine webhooks at the deployed webhook: it publishes the event that Twilio sent, or nothing."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.integration.cloud import Bus, Cloud
from tests.mutants import CLASSES, Request, genuine_of, mutants, send, twins

COUNT = 60  # of each class
AT_ONCE = 4


def seen(bus: Bus) -> set[str]:
    """Return all events so far, without their times."""
    events = set()
    for event in bus.drain(wait=1):
        detail = {name: value for name, value in event["detail"].items() if name != "received_at"}
        events.add(json.dumps([event["detail-type"], detail], sort_keys=True))
    return events


def test_mutants_through_the_stack(cloud: Cloud) -> None:
    """Genuine webhooks and their twins are accepted, and none of at least 500 mutants publishes another event.

    Mutants of texts without any SID are the exception: their events are marked as another reading.
    """
    target = cloud.target()
    webhooks = {name: genuine_of(name, target.account_sid) for name in CLASSES}
    sent = {each.request(target) for every in webhooks.values() for each in every}
    sent |= {twin for each in webhooks["bytes"] for twin in twins(each, target)}
    changed = [mutant.request for name in CLASSES for mutant in mutants(name, target, webhooks[name], count=COUNT)]

    def status(request: Request) -> int:
        return send(request, target).status

    with cloud.events("twilio") as bus, ThreadPoolExecutor(AT_ONCE) as pool:
        assert {200} == set(pool.map(status, sent))
        originals = seen(bus)
        assert len(originals) > len(webhooks["bytes"])

        answers = Counter(pool.map(status, changed))
        # A new webhook at the end: once its event has arrived, all events before it have arrived.
        last = cloud.inbound("the last one")
        send(last.request(target), target)
        bus.wait_for(lambda event: "the last one" in json.dumps(event))
        others = [json.loads(event)[1] for event in seen(bus) - originals]

    assert [last.fields["MessageSid"]] == [each["message"]["sid"] for each in others if "reading" not in each]
    # 404, 405: API Gateway has no such route; 503: too many made-up connections were requested.
    assert answers.keys() <= {0, 200, 400, 403, 404, 405, 413, 503}
    assert answers.total() - answers[0] >= 500
    assert answers[403] >= 300
