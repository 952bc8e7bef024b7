"""What the deployed webhook makes of mutants of genuine webhooks: what Twilio sent, or nothing."""

import json

from tests.faults import AwsFault, AwsProxy, aws
from tests.integration.cloud import Bus, Cloud
from tests.mutants import CLASSES, GENUINE, WITH_QUERY, mutants, send, twins

COUNT = 60  # of each class; "shape" is of events, which API Gateway makes
NAMES = [name for name in CLASSES if name != "shape"]


def seen(bus: Bus) -> set[str]:
    """Return all events so far, but for the time."""
    events = set()
    for event in bus.drain(wait=1):
        detail = {name: value for name, value in event["detail"].items() if name != "received_at"}
        events.add(json.dumps([event["detail-type"], detail], sort_keys=True))
    return events


def test_mutants_through_the_stack(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """Genuine webhooks and their twins are accepted; of at least 300 mutants none brings another event."""
    # Nothing is held back for having been published: a mutant may be about the same message.
    aws_proxy.add(AwsFault(aws.DENY, operation="PutItem", contains=b'"deduplication_id"'))
    target = cloud.target()
    webhooks = [*GENUINE, *WITH_QUERY]
    with cloud.events("twilio") as bus:
        statuses = [
            send(request, target).status
            for each in webhooks
            for request in (each.request(target), *twins(each, target))
        ]
        assert {200} == set(statuses)
        originals = seen(bus)
        assert len(originals) > len(GENUINE)

        answers: dict[int, int] = {}
        for name in NAMES:
            for mutant in mutants(name, target, WITH_QUERY if name == "moved" else webhooks, count=COUNT):
                status = send(mutant.request, target).status
                answers[status] = answers.get(status, 0) + 1
        # One more that is accepted: what was before it has arrived by then.
        send(GENUINE[0].request(target), target)

        assert set() == seen(bus) - originals
    # 404: API Gateway knows no such route; 503: too many made-up connections were asked for.
    assert answers.keys() <= {0, 200, 400, 403, 404, 413, 503}
    assert 300 <= sum(answers.values()) - answers.get(0, 0)
    assert 300 <= answers[403]
