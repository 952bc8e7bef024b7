"""A running stack writes each metric of the dashboard, and the saved queries find the lines that they are for."""

import json
import re
import time
import uuid
from typing import Any

from local.rights import transformed
from tests.alarms import Datapoints
from tests.cloudformation import of_type
from tests.conftest import ROOT
from tests.dashboard import Search, Series, series, widgets
from tests.faults import AwsFault, AwsProxy, FaultServer, aws, faults
from tests.integration.cloud import Cloud, eventually
from tests.mutants import Webhook, keeps_text, mutants, send, signed

TO = "+15005550006"


def records(arn: str, *bodies: str) -> dict[str, Any]:
    """Return an event with a batch of records that were put in the queue a minute ago."""
    attributes = {"SentTimestamp": str(int((time.time() - 60) * 1000)), "ApproximateReceiveCount": "1"}
    return {
        "Records": [
            {
                "messageId": str(uuid.uuid4()),
                "receiptHandle": "made-up",
                "body": body,
                "attributes": attributes,
                "eventSource": "aws:sqs",
                "eventSourceARN": arn,
            }
            for body in bodies
        ]
    }


def call(cloud: Cloud, function: str, event: Any) -> Any:
    """Invoke a function as the deployer, and return its answer."""
    answer = cloud.client("lambda").invoke(
        FunctionName=cloud.outputs[f"{function}FunctionArn"], Payload=json.dumps(event)
    )
    return json.loads(answer["Payload"].read())


def send_by_each_caller(cloud: Cloud) -> None:
    """Send by the API, by a direct invocation, and from the queue: an input, a notification and an event."""
    assert 201 == cloud.api("POST", "/messages", {"to": TO, "message": uuid.uuid4().hex}).status_code
    assert "sid" in call(cloud, "SendSms", {"to": TO, "message": uuid.uuid4().hex})
    example = json.loads((ROOT / "events" / "send_sms_sqs.json").read_text())
    bodies = [record["body"] for record in example["Records"]]
    assert [] == call(cloud, "SendSms", records(cloud.outputs["SendQueueArn"], *bodies))["batchItemFailures"]


def fail_to_send(cloud: Cloud, relay: FaultServer, proxy: AwsProxy) -> None:
    """Let Twilio refuse one message and answer 500 to another, and let DynamoDB throttle the send of a queued one."""
    for fault, error in ((faults.OPTED_OUT, "RecipientOptedOutError"), (faults.status(500), "OutcomeUnknownError")):
        relay.script(fault)
        assert error == call(cloud, "SendSms", {"to": TO, "message": uuid.uuid4().hex})["errorType"]
    proxy.add(AwsFault(aws.THROTTLE, operation="PutItem"))
    waiting = records(cloud.outputs["SendQueueArn"], json.dumps({"to": TO, "message": uuid.uuid4().hex}))
    assert 1 == len(call(cloud, "SendSms", waiting)["batchItemFailures"])
    proxy.reset()


def receive(cloud: Cloud, proxy: AwsProxy) -> None:
    """Post status callbacks, have a webhook refused for each reason, and make EventBridge throttle a buffered event."""
    target, none = cloud.target(), cloud.target("without-token")
    for status in ("sent", "delivered", "undelivered"):
        fields = {"MessageSid": f"SM{uuid.uuid4().hex}", "MessageStatus": status, "From": "+15551234567", "To": TO}
        assert 200 == send(Webhook(name=status, fields=fields).request(target), target).status
    hook = cloud.inbound(uuid.uuid4().hex)
    request = hook.request(target)
    assert 200 == send(request, target).status
    other = next(
        each.request for each in mutants("boundary", target, [hook], count=50) if keeps_text(each.request, target)
    )
    elsewhere = signed(request, target, url=request.url)  # signed for https, which the emulator does not use
    for refused in (other, elsewhere, cloud.inbound(uuid.uuid4().hex).request(none)):
        assert 403 == send(refused, none if refused.path == none.path else target).status
    proxy.add(AwsFault(aws.THROTTLE, operation="PutEvents"))
    event = {"detail-type": "Webhook Received", "detail": {"deduplication_id": uuid.uuid4().hex}, "uncertain": False}
    assert 1 == len(
        call(cloud, "Webhook", records(cloud.outputs["BufferQueueArn"], json.dumps(event)))["batchItemFailures"]
    )
    proxy.reset()


def test_each_series_is_written(
    cloud: Cloud, twilio_relay: FaultServer, aws_proxy: AwsProxy, other_connections: None
) -> None:
    """Functions write each of the connector's metrics on the dashboard, with the widget's dimensions.

    Unit tests cover the metrics of AWS's services and of log filters.
    """
    del other_connections
    shown = {
        each
        for widget in widgets(transformed(), cloud.info["stack_name"])
        for each in series(widget)
        if (each.metric.namespace if isinstance(each, Series) else each.namespace) == "TwilioConnector"
    }
    send_by_each_caller(cloud)
    fail_to_send(cloud, twilio_relay, aws_proxy)
    receive(cloud, aws_proxy)

    def missing() -> list[Series | Search]:
        for function in ("SendSms", "Webhook"):  # the emulator holds a late line back until the next invocation
            call(cloud, function, {})
        points = Datapoints()
        for line in cloud.log_lines():
            if line.startswith("{") and "_aws" in (found := json.loads(line)):
                points.embedded(found, 0)
        return [
            each
            for each in shown
            if not (each.metric in points.values if isinstance(each, Series) else any(map(each.finds, points.values)))
        ]

    assert 20 == len({each.metric.name for each in shown if isinstance(each, Series)})
    assert [] == eventually(missing, until=lambda left: not left)


def test_the_dashboard_is_there(cloud: Cloud) -> None:
    """CloudWatch has the dashboard, under the name in the stack's output and with all widgets."""
    name = cloud.resource("Dashboard")
    body = cloud.client("cloudwatch").get_dashboard(DashboardName=name)["DashboardBody"]

    assert cloud.outputs["DashboardUrl"].endswith(f"#dashboards/dashboard/{name}")
    assert cloud.resource("SendSmsFunction") in body
    assert 12 == len(json.loads(body)["widgets"])


# ---------------------------------------------------------------- queries


def query(cloud: Cloud, name: str, **values: str) -> list[dict[str, Any]]:
    """Run a saved query, and return the lines that it finds.

    The emulator ignores `stats`, and returns the lines that it would count. It does not parse a line's JSON, so this
    function does.
    """
    properties = of_type(transformed(), "AWS::Logs::QueryDefinition")[name]
    text = properties["QueryString"].replace("fields @timestamp,", "fields @message, @timestamp,")
    assert "fields @message," in text
    for placeholder, value in values.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    logs = cloud.client("logs")
    begun = logs.start_query(
        logGroupNames=[cloud.resource(group["Ref"]) for group in properties["LogGroupNames"]],
        startTime=0,
        endTime=int(time.time()) + 60,
        queryString=text,
    )
    rows = [
        {cell["field"]: cell["value"] for cell in row}
        for row in logs.get_query_results(queryId=begun["queryId"])["results"]
    ]
    return [row | json.loads(row["@message"]) for row in rows]


def test_refused_webhooks_by_reason(cloud: Cloud) -> None:
    """The query finds the line of a webhook that was refused, with its reason, and no other line."""
    target = cloud.target(token="1" * 32)
    assert 403 == send(cloud.inbound(uuid.uuid4().hex).request(target), target).status
    found = eventually(
        lambda: query(cloud, "RefusedWebhooksQuery"),
        until=lambda lines: any(each["reason"].startswith("the signature does not") for each in lines),
    )

    assert {"webhook refused"} == {line["message"] for line in found}


def test_story_of_one_send(cloud: Cloud) -> None:
    """The query finds the lines of a send and of its callback in order, and those of no other send."""
    keys = [uuid.uuid4().hex for _ in range(2)]
    sids = [cloud.invoke("SendSms", {"to": TO, "message": key, "idempotency_key": key})["sid"] for key in keys]

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in cloud.log_lines() if line.startswith("{")]

    def send_id() -> str | None:
        return next(
            (
                line["send_id"]
                for line in lines()
                if {"send_id", "message_sid"} <= line.keys() and line["message_sid"] == sids[0]
            ),
            None,
        )

    sought = eventually(send_id, until=bool)
    assert sought
    groups = {cloud.resource("SendSmsLogs"), cloud.resource("WebhookLogs")}
    found = eventually(
        lambda: query(cloud, "SendStoryQuery", SEND_ID=sought),
        until=lambda story: groups <= {line["@log"] for line in story},
    )

    assert {sought} == {line["send_id"] for line in found}
    assert sorted(line["@timestamp"] for line in found) == [line["@timestamp"] for line in found]
    assert sids[1] not in json.dumps(found)


def test_fields_of_the_queries_are_those_of_lines(cloud: Cloud, twilio_relay: FaultServer) -> None:
    """Each field that a saved query names is in a log line that the stack wrote, of a failure or of a success."""
    twilio_relay.script(faults.OPTED_OUT)
    for key in (uuid.uuid4().hex, uuid.uuid4().hex):
        cloud.invoke("SendSms", {"to": TO, "message": key, "idempotency_key": key})
    named = set()
    for each in of_type(transformed(), "AWS::Logs::QueryDefinition").values():
        made = set(re.findall(r"\bas (\w+)", each["QueryString"]))
        named |= set(re.findall(r"[a-z][a-z_]+", re.sub(r"/[^/]*/|@\w+", "", each["QueryString"]))) - made - WORDS

    def missing() -> set[str]:
        lines = [json.loads(line) for line in cloud.log_lines() if line.startswith("{")]
        return named - {name for line in lines for name in line}

    assert {"error", "function", "reason"} < named
    assert set() == eventually(missing, until=lambda left: not left)


WORDS = {"fields", "filter", "sort", "limit", "stats", "count", "max", "by", "as", "asc", "desc", "like", "ispresent"}
"""Words of the query language, which are not fields. A name after `as` is not a field either: the query defines it."""
