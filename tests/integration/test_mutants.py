"""What the deployed webhook makes of mutants of genuine webhooks: what Twilio sent, or nothing."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tests.integration.cloud import SECONDS, Bus, Cloud
from tests.mutants import CLASSES, GENUINE, WITH_QUERY, Request, Target, mutants, twins

COUNT = 60  # of each class; "shape" is of events, which API Gateway makes
NAMES = [name for name in CLASSES if name != "shape"]


@pytest.fixture(scope="module")
def target(cloud: Cloud) -> Target:
    """Return where Twilio's webhooks go, and who signs them."""
    twilio = cloud.info["twilio"]
    return Target(cloud.info["webhook_url"].removesuffix("/webhook"), twilio["account_sid"], twilio["auth_token"])


def sent(request: Request, target: Target) -> int:
    """Send a request byte for byte, and return the status; 0 is one that HTTP's own rules do not let out."""
    connection = http.client.HTTPConnection(urlsplit(target.base).netloc, timeout=SECONDS)
    try:
        url = request.path + (f"?{request.query}" if request.query else "")
        connection.putrequest(request.method, url, skip_accept_encoding=True)
        for name, value in (*request.headers, ("content-length", str(len(request.body)))):
            connection.putheader(name, value.encode())
        connection.endheaders(request.body)
        return connection.getresponse().status
    except (http.client.InvalidURL, ValueError):
        return 0
    finally:
        connection.close()


def seen(bus: Bus) -> set[str]:
    """Return all events so far, but for the time."""
    events = set()
    for event in bus.drain(wait=1):
        detail = {name: value for name, value in event["detail"].items() if name != "received_at"}
        events.add(json.dumps([event["detail-type"], detail], sort_keys=True))
    return events


def test_mutants_through_the_stack(cloud: Cloud, target: Target) -> None:
    """Genuine webhooks and their twins are accepted; of at least 300 mutants none brings another event."""
    webhooks = [*GENUINE, *WITH_QUERY]
    with cloud.events() as bus:
        statuses = [
            sent(request, target) for each in webhooks for request in (each.request(target), *twins(each, target))
        ]
        assert {200} == set(statuses)
        originals = seen(bus)
        assert len(originals) > len(GENUINE)

        answers: dict[int, int] = {}
        for name in NAMES:
            for mutant in mutants(name, target, WITH_QUERY if name == "moved" else webhooks, count=COUNT):
                status = sent(mutant.request, target)
                answers[status] = answers.get(status, 0) + 1
        # One more that is accepted: what was before it has arrived by then.
        sent(GENUINE[0].request(target), target)

        assert set() == seen(bus) - originals
    # 404: API Gateway knows no such route; 503: too many made-up connections were asked for.
    assert answers.keys() <= {0, 200, 400, 403, 404, 413, 503}
    assert 300 <= sum(answers.values()) - answers.get(0, 0)
    assert 300 <= answers[403]
