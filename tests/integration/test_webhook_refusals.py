"""A thousand requests that Twilio did not send: each is refused alike, none becomes an event or costs much."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tests.faults import AwsFault, AwsProxy, aws
from tests.integration.cloud import Cloud
from tests.mutants import CLASSES, GENUINE, Answer, Request, Target, event_2, genuine_of, mutants, send, shapes

OF_A_CLASS = 90
OF_SHAPES = 300
AT_ONCE = 4
"""So many containers answer."""
REFRESH_SECONDS = 30
"""A signature that does not hold has a container read its token anew, but no more often."""
READS = 2
"""The token, and the one before it."""
FORBIDDEN = Answer(403, '{"message":"Forbidden"}', "application/json")
TOO_LARGE = Answer(413, '{"message":"Content Too Large"}', "application/json")


def forged(target: Target) -> Iterator[Request]:
    """Yield requests of every kind that somebody signed who does not know the token."""
    stranger = target._replace(auth_token="1" * 32)
    for name in CLASSES:
        for mutant in mutants(name, stranger, genuine_of(name, target.account_sid), count=OF_A_CLASS):
            # Other paths and methods are API Gateway's to refuse.
            if mutant.request.method.upper() in {"GET", "POST"}:
                yield replace(mutant.request, path=target.path, host=mutant.webhook.request(target).host)
    yield replace(next(webhook for webhook in GENUINE if webhook.json).request(stranger), body=b"[" * 100_000)


def test_a_thousand_forged_requests(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """The answer tells nothing, no event comes of it, no log has a trace of Python's, and few tokens are read."""
    target, function = cloud.target(), cloud.outputs["WebhookFunctionArn"]
    # It does nothing but let these calls be told from those for connections that somebody made up.
    aws_proxy.add(AwsFault(aws.delay(0), operation="GetSecretValue", contains=b'"twilio/default"'))
    requests = list(forged(target))
    events = [shape.event for shape in shapes(target._replace(auth_token="1" * 32), GENUINE, count=OF_SHAPES)]
    events += [event_2(request, binary=False) for request in requests[:100]]

    def invoke(event: Any) -> Answer:
        answer = json.loads(
            cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event))["Payload"].read()
        )
        return Answer(answer["statusCode"], answer["body"], answer["headers"]["Content-Type"])

    began = time.monotonic()
    with cloud.events("twilio") as bus, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = Counter(pool.map(lambda request: send(request, target), requests))
        answers += Counter(pool.map(invoke, events))
        seconds = time.monotonic() - began
        published = bus.drain(wait=1)

    unsent = answers.pop(Answer(0), 0)  # HTTP's own rules do not let them out
    # API Gateway knows no other methods, and takes no header as long as these.
    gateway = {answer for answer in answers if answer.status in {400, 404, 431}}
    assert {FORBIDDEN, TOO_LARGE} == answers.keys() - gateway
    assert answers.total() - sum(answers[answer] for answer in gateway) >= 1000 - unsent
    assert answers[FORBIDDEN] >= 900
    assert [] == published
    lines = cloud.log_lines()
    assert [] == [line for line in lines if "Traceback" in line or "unexpected exception" in line]
    reads = sum(call.fault == "delay" for call in aws_proxy.calls)
    assert reads <= AT_ONCE * READS * (1 + seconds // REFRESH_SECONDS) + AT_ONCE
