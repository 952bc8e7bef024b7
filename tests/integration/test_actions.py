"""The deployed stack's actions, called by the API, directly, and by SQS, SNS, EventBridge and Step Functions."""

import json
import uuid
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

from tests.conftest import LoadEvent
from tests.integration.cloud import Cloud, eventually

TO = "+15005550006"


def text() -> str:
    """Return a text that no other message has."""
    return f"Test {uuid.uuid4()}"


def test_api_sends_with_the_api_key(cloud: Cloud) -> None:
    """POST /messages answers 201 with Twilio's message object, and Twilio stores the message."""
    body = text()

    answer = cloud.api("POST", "/messages", {"to": TO, "message": body})

    assert (201, "application/json") == (answer.status_code, answer.headers["Content-Type"])
    assert [answer.json()["sid"]] == [message["sid"] for message in cloud.stored(body)]


def test_direct_invocation_sends_with_the_auth_token(cloud: Cloud) -> None:
    """A direct invocation through a connection with an auth token returns the message object that Twilio stores."""
    body = text()

    sms = {"connection": cloud.info["connections"]["auth_token"], "to": TO, "message": body}
    sms["from"] = cloud.info["twilio"]["number"]
    answer = cloud.invoke("SendSms", sms)

    assert [answer["sid"]] == [message["sid"] for message in cloud.stored(body)]


def test_get(cloud: Cloud) -> None:
    """The API and a direct invocation return the same message."""
    sid = cloud.invoke("SendSms", {"to": TO, "message": text()})["sid"]

    through_api = cloud.api("GET", f"/messages/{sid}")

    assert 200 == through_api.status_code
    assert cloud.invoke("GetSms", {"message_sid": sid}) == through_api.json()


def test_list_pages_through_the_api(cloud: Cloud) -> None:
    """The page token of a list continues exactly after the list's last message."""
    sent = [cloud.invoke("SendSms", {"to": TO, "message": text()})["sid"] for _ in range(3)]

    first = cloud.api("GET", "/messages?to=%2B15005550006&limit=2&page_size=3").json()
    second = cloud.api(
        "GET", f"/messages?to=%2B15005550006&limit=1&page_size=3&page_token={first['next_page_token']}"
    ).json()

    assert sent[::-1] == [message["sid"] for message in first["messages"] + second["messages"]]


def test_raw_request(cloud: Cloud) -> None:
    """A raw request reaches any resource of the account, and its answer has the number of attempts."""
    raw = {"method": "GET", "url": "/Accounts/$TWILIO_ACCOUNT_SID/IncomingPhoneNumbers.json"}

    answer = cloud.api("POST", "/raw-request", raw)

    assert (200, 200, 1) == (answer.status_code, answer.json()["status_code"], answer.json()["attempts"])
    assert cloud.info["twilio"]["number"] in {
        number["phone_number"] for number in answer.json()["data"]["incoming_phone_numbers"]
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "title"),
    [
        ("POST", "/messages", {"to": "12", "message": ""}, 400, "InvalidInputError"),
        ("POST", "/messages", {"to": TO, "message": "x", "connection": "nobody"}, 404, "ConnectionNotFoundError"),
        ("POST", "/messages", {"to": TO, "message": "x", "connection": "broken"}, 500, "ConnectionInvalidError"),
        ("POST", "/messages", {"to": TO, "message": "x", "connection": "refused"}, 502, "TwilioAuthenticationError"),
        ("POST", "/messages", {"to": TO, "message": "x", "from": "+15005550001"}, 400, "TwilioRejectedError"),
        ("GET", f"/messages/SM{'f' * 32}", None, 404, "TwilioNotFoundError"),
        ("GET", "/messages/SM1", None, 400, "InvalidInputError"),
        ("GET", "/messages?limit=0", None, 400, "InvalidInputError"),
        ("POST", "/raw-request", {"method": "GET", "url": f"/Accounts/AC{'f' * 32}.json"}, 400, "InvalidInputError"),
    ],
)
@pytest.mark.usefixtures("other_connections")
def test_api_errors(cloud: Cloud, method: str, path: str, body: Any, status: int, title: str) -> None:
    """An API caller gets a problem object with the error's class and status."""
    answer = cloud.api(method, path, body)

    assert "application/problem+json" == answer.headers["Content-Type"]
    assert (status, title, status) == (answer.status_code, answer.json()["title"], answer.json()["status"])


def test_refused_input_never_reaches_twilio(cloud: Cloud) -> None:
    """The error of an invalid input names all invalid fields, and nothing is sent."""
    body = text()

    answer = cloud.api("POST", "/messages", {"to": "nobody", "message": body, "validity_period": "5"})

    assert ["to", "validity_period"] == sorted(error["field"] for error in answer.json()["errors"])
    assert [] == cloud.stored(body)


def test_dry_run_sends_nothing(cloud: Cloud) -> None:
    """A dry run answers 200 with the request that it would send, and sends nothing."""
    body = text()

    answer = cloud.api("POST", "/messages", {"to": "(415) 555-2671", "message": body, "dry_run": True})

    assert (200, "+14155552671") == (answer.status_code, answer.json()["request"]["form"]["To"])
    assert [] == cloud.stored(body)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/messages"), ("GET", "/messages"), ("GET", f"/messages/SM{'0' * 32}"), ("POST", "/raw-request")],
)
def test_unsigned_calls_are_refused(cloud: Cloud, method: str, path: str) -> None:
    """Every route of the Actions API answers 403 to a request without an AWS signature."""
    assert 403 == cloud.api(method, path, {}, signed=False).status_code


def test_caller_may_only_call(cloud: Cloud) -> None:
    """The documentation's policy for callers allows no read of a secret, no event and no invocation of the webhook."""
    event = {"EventBusName": cloud.outputs["EventBusName"], "Source": "twilio", "DetailType": "x", "Detail": "{}"}

    with pytest.raises(ClientError, match="AccessDenied"):
        cloud.client("secretsmanager", as_caller=True).get_secret_value(SecretId="twilio/default")
    with pytest.raises(ClientError, match="AccessDenied"):
        cloud.client("events", as_caller=True).put_events(Entries=[event])
    with pytest.raises(ClientError, match="AccessDenied"):
        cloud.invoke("Webhook", {})


def test_without_the_right_to_read_secrets(cloud: Cloud) -> None:
    """A function that may not read secrets answers ConnectionNotFoundError, and does not crash."""
    role = cloud.resource("SendSmsFunctionRole")
    policy = cloud.resource("ConnectionsPolicy")
    sms = {"to": TO, "message": text(), "connection": "unread"}  # a warm function does not have it in memory
    secret = cloud.client("secretsmanager").get_secret_value(SecretId="twilio/default")["SecretString"]
    cloud.client("secretsmanager").create_secret(Name="twilio/unread", SecretString=secret)
    cloud.client("iam").detach_role_policy(RoleName=role, PolicyArn=policy)
    try:
        answer = cloud.api("POST", "/messages", sms)
    finally:
        cloud.client("iam").attach_role_policy(RoleName=role, PolicyArn=policy)
        cloud.client("secretsmanager").delete_secret(SecretId="twilio/unread", ForceDeleteWithoutRecovery=True)

    assert (404, "ConnectionNotFoundError") == (answer.status_code, answer.json()["title"])
    assert "AccessDenied" in answer.json()["detail"]


def test_error_classes_are_names_to_lambda(cloud: Cloud) -> None:
    """A direct invocation fails with the error's class name as errorType, which Step Functions matches."""
    error = cloud.invoke("GetSms", {"message_sid": f"SM{'f' * 32}"})

    assert "TwilioNotFoundError" == error["errorType"]
    assert "HTTP 404" in error["errorMessage"]


def test_step_functions_catches_by_name(cloud: Cloud) -> None:
    """A state machine catches an error by its class name."""
    machine = {
        "StartAt": "Get",
        "States": {
            "Get": {
                "Type": "Task",
                "Resource": "arn:aws:states:::lambda:invoke",
                "Parameters": {"FunctionName": cloud.outputs["GetSmsFunctionArn"], "Payload.$": "$"},
                "Catch": [
                    {"ErrorEquals": ["InvalidInputError"], "Next": "Wrong"},
                    {"ErrorEquals": ["TwilioNotFoundError"], "Next": "Right"},
                ],
                "End": True,
            },
            "Right": {"Type": "Pass", "Result": "caught by name", "End": True},
            "Wrong": {"Type": "Fail"},
        },
    }
    states = cloud.client("stepfunctions")
    role = cloud.client("iam").get_role(RoleName=cloud.resource("GetSmsFunctionRole"))["Role"]["Arn"]
    arn = states.create_state_machine(name=f"test-{uuid.uuid4().hex}", definition=json.dumps(machine), roleArn=role)[
        "stateMachineArn"
    ]
    execution = states.start_execution(stateMachineArn=arn, input=json.dumps({"message_sid": f"SM{'f' * 32}"}))[
        "executionArn"
    ]

    done = eventually(
        lambda: states.describe_execution(executionArn=execution), until=lambda run: run["status"] != "RUNNING"
    )

    assert ("SUCCEEDED", '"caught by name"') == (done["status"], done["output"])


def test_a_queue_of_the_users_own_is_emptied(cloud: Cloud) -> None:
    """A batch of a user's own queue: valid records are sent once, and the invalid one leaves the queue unsent."""
    good, bad = [text() for _ in range(3)], text()
    with cloud.queue() as (url, arn):
        sqs, functions = cloud.client("sqs"), cloud.client("lambda")
        bodies = [{"to": TO, "message": body} for body in good] + [{"to": "nobody", "message": bad}]
        entries = [{"Id": str(index), "MessageBody": json.dumps(body)} for index, body in enumerate(bodies)]
        sqs.send_message_batch(QueueUrl=url, Entries=entries)
        mapping = functions.create_event_source_mapping(
            EventSourceArn=arn,
            FunctionName=cloud.outputs["SendSmsFunctionArn"],
            BatchSize=10,
            FunctionResponseTypes=["ReportBatchItemFailures"],
        )
        try:
            counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            eventually(
                lambda: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=counts)["Attributes"],
                until=lambda left: (
                    {"0"} == {left[name] for name in counts} and all(cloud.stored(body) for body in good)
                ),
            )
        finally:
            functions.delete_event_source_mapping(UUID=mapping["UUID"])

    assert [1, 1, 1, 0] == [len(cloud.stored(body)) for body in [*good, bad]]


def test_sns_notification_is_sent(cloud: Cloud) -> None:
    """A function that is subscribed to a topic sends the message of a notification."""
    body = text()
    sns, functions = cloud.client("sns"), cloud.client("lambda")
    topic = sns.create_topic(Name=f"test-{uuid.uuid4().hex}")["TopicArn"]
    function = cloud.outputs["SendSmsFunctionArn"]
    functions.add_permission(
        FunctionName=function, StatementId=uuid.uuid4().hex, Action="lambda:InvokeFunction",
        Principal="sns.amazonaws.com", SourceArn=topic,
    )  # fmt: skip
    sns.subscribe(TopicArn=topic, Protocol="lambda", Endpoint=function)
    sns.publish(TopicArn=topic, Message=json.dumps({"to": TO, "message": body}))

    assert 1 == len(eventually(lambda: cloud.stored(body), until=bool))


def test_eventbridge_event_is_sent(cloud: Cloud) -> None:
    """A function that is the target of a rule sends the message in an event's detail."""
    body = text()
    events, functions = cloud.client("events"), cloud.client("lambda")
    name, function = f"test-{uuid.uuid4().hex}", cloud.outputs["SendSmsFunctionArn"]
    rule = events.put_rule(Name=name, EventPattern='{"source": ["com.example.shop"]}')["RuleArn"]
    functions.add_permission(
        FunctionName=function, StatementId=name, Action="lambda:InvokeFunction",
        Principal="events.amazonaws.com", SourceArn=rule,
    )  # fmt: skip
    events.put_targets(Rule=name, Targets=[{"Id": "send", "Arn": function}])
    detail = json.dumps({"to": TO, "message": body})
    events.put_events(Entries=[{"Source": "com.example.shop", "DetailType": "Parcel Shipped", "Detail": detail}])

    assert 1 == len(eventually(lambda: cloud.stored(body), until=bool))


@pytest.mark.parametrize("name", ["send_sms", "send_sms_failure_record"])
def test_event_files_are_taken(cloud: Cloud, event: LoadEvent, name: str) -> None:
    """send_sms accepts the example inputs in `events/`."""
    assert "queued" == cloud.invoke("SendSms", event(name))["status"]


@pytest.mark.parametrize("name", ["send_sms_eventbridge", "send_sms_sns"])
def test_event_files_of_deliveries_are_put_on_the_queue(cloud: Cloud, event: LoadEvent, name: str) -> None:
    """send_sms accepts the example events of a bus and a topic, puts them on the send queue and returns nothing."""
    assert cloud.invoke("SendSms", event(name)) is None


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_api_event_files_are_taken(cloud: Cloud, event: LoadEvent, name: str) -> None:
    """send_sms answers the example events of both payload formats and of a function URL with an HTTP response."""
    answer = cloud.invoke("SendSms", event(name))

    assert (201, "queued") == (answer["statusCode"], json.loads(answer["body"])["status"])


def test_sqs_event_file_is_taken(cloud: Cloud, event: LoadEvent) -> None:
    """send_sms accepts an SQS batch whose bodies are an input, a notification and an event."""
    assert {"batchItemFailures": []} == cloud.invoke("SendSms", event("send_sms_sqs"))


def test_inspector_page_is_there(cloud: Cloud) -> None:
    """The emulator's page of messages, to which the demo refers, is available."""
    assert 200 == requests.get(cloud.info["twilio"]["url"], timeout=30).status_code
