"""A thousand forged requests: all are refused, none is published, and they cause few reads of the token."""

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
"""The number of requests at a time, and so of containers that answer."""
REFRESH_SECONDS = 30
"""An invalid signature makes a container read its token again, but at most once in this time."""
READS = 2
"""The number of reads at a time: one of the token, and one of the token before it."""
FORBIDDEN = Answer(403, '{"message":"Forbidden"}', "application/json")
TOO_LARGE = Answer(413, '{"message":"Content Too Large"}', "application/json")


def forged(target: Target) -> Iterator[Request]:
    """Yield requests of every kind, signed by somebody who does not know the token."""
    stranger = target._replace(auth_token="1" * 32)
    for name in CLASSES:
        for mutant in mutants(name, stranger, genuine_of(name, target.account_sid), count=OF_A_CLASS):
            # API Gateway refuses other paths and methods.
            if mutant.request.method.upper() in {"GET", "POST"}:
                yield replace(mutant.request, path=target.path, host=mutant.webhook.request(target).host)
    yield replace(next(webhook for webhook in GENUINE if webhook.json).request(stranger), body=b"[" * 100_000)


def test_a_thousand_forged_requests(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """Forged requests get an answer without details, publish no event, log no traceback, and cause few token reads."""
    target, function = cloud.target(), cloud.outputs["WebhookFunctionArn"]
    # A delay of 0 only marks these calls, to distinguish them from those for made-up connections.
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

    unsent = answers.pop(Answer(0), 0)  # the HTTP client refuses to send them
    # API Gateway accepts no other methods, and no headers as long as these.
    gateway = {answer for answer in answers if answer.status in {400, 404, 431}}
    assert {FORBIDDEN, TOO_LARGE} == answers.keys() - gateway
    assert answers.total() - sum(answers[answer] for answer in gateway) >= 1000 - unsent
    assert answers[FORBIDDEN] >= 900
    assert [] == published
    lines = cloud.log_lines()
    assert [] == [line for line in lines if "Traceback" in line or "unexpected exception" in line]
    reads = sum(call.fault == "delay" for call in aws_proxy.calls)
    assert reads <= AT_ONCE * READS * (1 + seconds // REFRESH_SECONDS) + AT_ONCE
