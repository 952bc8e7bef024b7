"""Two stacks side by side: each works alone, accepts every parameter change, and can be deleted without the other."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, WaiterError

from local import LocalError, deploy, deployer
from tests.faults import FaultServer
from tests.integration.cloud import Cloud, eventually
from tests.mutants import send

NAME = "second"
TO = "+15005550006"


class Stack(NamedTuple):
    """A stack beside the tests' own one, and the parameters of its first deployment."""

    cloud: Cloud
    parameters: dict[str, str]

    def configuration(self, function: str, version: str = "live") -> dict[str, Any]:
        """Return a function's configuration, by default of the version to which the alias points."""
        arn = self.cloud.outputs[f"{function}FunctionArn"].rpartition(":")[0]
        found: dict[str, Any] = self.cloud.client("lambda").get_function_configuration(
            FunctionName=arn, Qualifier=version
        )
        return found

    def set(self, **values: str) -> None:
        """Deploy with other values of these parameters, and no other change."""
        deploy.set_parameters(self.cloud.client("cloudformation"), values, NAME)

    def sends(self, text: str) -> str:
        """Send a message as the deployer, and return its SID."""
        answer = self.cloud.client("lambda").invoke(
            FunctionName=self.cloud.outputs["SendSmsFunctionArn"], Payload=json.dumps({"to": TO, "message": text})
        )
        sid: str = json.loads(answer["Payload"].read())["sid"]
        return sid


@pytest.fixture(scope="module")
def second(cloud: Cloud, folder: Path, twilio_relay: FaultServer) -> Iterator[Stack]:
    """Deploy a second stack with the same connections."""
    aws_url = cloud.info["aws_endpoint_url"]
    deploy.prepare(folder, deploy.BUILT)
    parameters = {"TwilioApiUrl": twilio_relay.url}
    outputs = deploy.deploy(folder, aws_url, parameters, NAME)
    info = cloud.info | {"stack_name": NAME, "outputs": outputs, "webhook_url": outputs["WebhookUrl"]}
    yield Stack(Cloud(info), parameters)
    cloudformation = cloud.client("cloudformation")
    cloudformation.delete_stack(StackName=NAME)


def receives(cloud: Cloud) -> bool:
    """Post a message to a stack's webhook, and return whether the event on its bus has the stack's own URL."""
    text = uuid.uuid4().hex
    with cloud.events("twilio") as bus:
        answer = send(cloud.inbound(text).request(cloud.target()), cloud.target())
        assert 200 == answer.status
        event = bus.wait_for(lambda event: event["detail"]["message"]["body"] == text)
    return bool(event["detail"]["url"] == cloud.info["webhook_url"])


def test_both_send_and_receive(cloud: Cloud, second: Stack) -> None:
    """Both stacks send and receive messages, and have no output in common, such as a function, queue or bus."""
    ours, theirs = cloud.outputs, second.cloud.outputs
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    cloud.invoke("SendSms", {"to": TO, "message": one})
    second.sends(other)

    assert [] == [name for name in ours if ours[name] == theirs[name]]
    assert (1, 1) == (len(cloud.stored(one)), len(cloud.stored(other)))
    assert receives(cloud)
    assert receives(second.cloud)


# ---------------------------------------------------------------- every parameter, changed alone


def variable(function: str, name: str) -> Callable[[Stack], Any]:
    """Return a function that reads an environment variable of the live version."""
    return lambda stack: stack.configuration(function)["Environment"]["Variables"][name]


def setting(function: str, *path: str) -> Callable[[Stack], Any]:
    """Return a function that reads a setting of the live version."""

    def read(stack: Stack) -> Any:
        found: Any = stack.configuration(function)
        for key in path:
            found = found[key]
        return found

    return read


def mapping(name: str) -> Callable[[Stack], Any]:
    """Return a function that reads a setting of the send queue's mapping to the alias."""

    def read(stack: Stack) -> Any:
        (found,) = stack.cloud.client("lambda").list_event_source_mappings(
            EventSourceArn=stack.cloud.outputs["SendQueueArn"]
        )["EventSourceMappings"]
        assert found["FunctionArn"].endswith(":live")
        return found.get(name) or found["ScalingConfig"][name]

    return read


def throttling(name: str) -> Callable[[Stack], Any]:
    """Return a function that reads a limit of the Webhook API."""

    def read(stack: Stack) -> Any:
        # The emulator answers with CloudFormation's names, which boto3 does not know.
        url = f"{stack.cloud.info['aws_endpoint_url']}/v2/apis/{stack.cloud.resource('WebhookApi')}/stages"
        (stage,) = call_aws("apigateway", url)["items"]
        return stage["defaultRouteSettings"][name]

    return read


def call_aws(service: str, url: str) -> Any:
    """Send a GET request as the deployer, and return the JSON of the emulator's answer."""
    request = AWSRequest("GET", url)
    SigV4Auth(Credentials("test", "test"), service, "us-east-1").add_auth(request)
    return requests.get(url, headers=dict(request.headers), timeout=30).json()


def policies(stack: Stack) -> str:
    """Return the policy document for connections, as text."""
    iam, arn = stack.cloud.client("iam"), stack.cloud.resource("ConnectionsPolicy")
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    return json.dumps(iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"])


def reply(stack: Stack) -> str:
    """Return the value of the parameter that says how the webhook replies."""
    name = variable("Webhook", "REPLY_PARAMETER")(stack)
    return str(stack.cloud.client("ssm").get_parameter(Name=name)["Parameter"]["Value"])


def polling(stack: Stack) -> tuple[str, str]:
    """Return the schedule of polling, and whether it is enabled."""
    name = stack.cloud.resource("PollMessagesFunctionSchedule")
    schedule = stack.cloud.client("scheduler").get_schedule(Name=name)
    return schedule["ScheduleExpression"], schedule["State"]


def subscriptions(stack: Stack) -> list[str]:
    """Return the endpoints that are subscribed to the topic."""
    found = stack.cloud.client("sns").list_subscriptions_by_topic(TopicArn=TOPIC)["Subscriptions"]
    return [each["Endpoint"] for each in found]


def retention(stack: Stack) -> Any:
    """Return for how long a function's logs are kept."""
    (group,) = stack.cloud.client("logs").describe_log_groups(logGroupNamePrefix=stack.cloud.resource("SendSmsLogs"))[
        "logGroups"
    ]
    return group["retentionInDays"]


def alarm_actions(stack: Stack) -> list[str]:
    """Return the topics that an alarm notifies."""
    name = stack.cloud.resource("WebhookErrorsAlarm")
    (alarm,) = stack.cloud.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
    return list(alarm["AlarmActions"])


TOPIC = "arn:aws:sns:us-east-1:000000000000:second-topic"
KEY = "arn:aws:kms:us-east-1:000000000000:key/00000000-0000-0000-0000-000000000000"
FUNCTION = "arn:aws:lambda:us-east-1:000000000000:function:reply"
OTHER_ARCHITECTURE = "arm64" if deploy.architecture() == "x86_64" else "x86_64"
CHANGES: dict[str, tuple[str, Callable[[Stack], Any], Any]] = {
    "ConnectionPrefix": ("second/", variable("GetSms", "CONNECTION_PREFIX"), "second/"),
    "ConnectionKmsKeyArn": (KEY, lambda stack: KEY in policies(stack), True),
    "DefaultConnection": ("other", variable("Webhook", "DEFAULT_CONNECTION"), "other"),
    "DefaultCountry": ("DE", variable("ListSms", "DEFAULT_COUNTRY"), "DE"),
    "WebhookBaseUrl": ("https://example.com", variable("Webhook", "WEBHOOK_BASE_URL"), "https://example.com"),
    "WebhookRateLimit": ("10", throttling("ThrottlingRateLimit"), 10),
    "WebhookBurstLimit": ("20", throttling("ThrottlingBurstLimit"), 20),
    "ReplyFunctionArn": (FUNCTION, reply, f"{FUNCTION}\n"),
    "AutoReply": ("Hello", reply, "\nHello"),
    "PollingSchedule": ("rate(5 minutes)", polling, ("rate(5 minutes)", "ENABLED")),
    "UnknownReportAfter": ("60", variable("Resolve", "UNKNOWN_REPORT_AFTER"), "60"),
    "SendTopicArn": (TOPIC, lambda stack: len(subscriptions(stack)), 1),
    "SendBatchSize": ("5", mapping("BatchSize"), 5),
    "SendBatchWindow": ("1", mapping("MaximumBatchingWindowInSeconds"), 1),
    "SendMaximumConcurrency": ("2", mapping("MaximumConcurrency"), 2),
    "SendThreads": ("2", variable("SendSms", "SEND_THREADS"), "2"),
    "SendSmsTimeout": ("40", setting("SendSms", "Timeout"), 40),
    "SendLease": ("90", variable("SendSms", "SEND_LEASE"), "90"),
    "Architecture": (OTHER_ARCHITECTURE, setting("GetSms", "Architectures"), [OTHER_ARCHITECTURE]),
    "LogLevel": ("DEBUG", setting("RawRequest", "LoggingConfig", "ApplicationLogLevel"), "DEBUG"),
    "LogSuccess": ("false", variable("GetSms", "LOG_SUCCESS"), "false"),
    "Tracing": ("Active", setting("ListSms", "TracingConfig", "Mode"), "Active"),
    "LogRetentionDays": ("1", retention, 1),
    "AlarmTopicArn": (TOPIC, alarm_actions, [TOPIC]),
    "TwilioApiUrl": ("https://example.com", variable("RotateConnection", "TWILIO_API_URL"), "https://example.com"),
}
"""For each parameter: another value, a function that reads it from the stack, and what that then returns."""


def test_every_parameter_is_changed(second: Stack) -> None:
    """Each parameter of the template is changed below, or is listed as one whose change the emulator refuses."""
    found = second.cloud.client("cloudformation").describe_stacks(StackName=NAME)["Stacks"][0]["Parameters"]

    assert {parameter["ParameterKey"] for parameter in found} == CHANGES.keys() | deploy.REFUSED.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_parameter_changed_alone_is_live(second: Stack, name: str) -> None:
    """One parameter can be changed and changed back, and the live version has the new value after each deployment."""
    value, read, wanted = CHANGES[name]
    second.cloud.client("sns").create_topic(Name=TOPIC.rpartition(":")[2])
    before = parameters(second)
    second.set(**{name: value})
    try:
        assert normal(wanted) == normal(read(second))
        assert [] == differing(second)
    finally:
        second.set(**{name: before[name]})
    assert before == parameters(second)
    assert [] == differing(second)


@pytest.mark.parametrize("name", deploy.REFUSED)
def test_parameter_is_refused_here(second: Stack, name: str) -> None:
    """The emulator refuses to change the parameters that `deploy.REFUSED` lists; tests read the template for them."""
    before = parameters(second)
    with pytest.raises(WaiterError, match="UPDATE_ROLLBACK_COMPLETE"):
        second.set(**{name: "on"})

    assert before == parameters(second)


def parameters(stack: Stack) -> dict[str, str]:
    """Return the values of a stack's parameters."""
    found = stack.cloud.client("cloudformation").describe_stacks(StackName=NAME)["Stacks"][0]["Parameters"]
    return {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in found}


def normal(value: Any) -> Any:
    """Return a value as text, and a list or tuple as a list of texts, because the emulator keeps numbers as text."""
    return [*map(str, value)] if isinstance(value, list | tuple) else str(value)


def differing(stack: Stack) -> list[str]:
    """Return the functions whose unpublished configuration differs from the live version's."""
    names = [name.removesuffix("FunctionArn") for name in stack.cloud.outputs if name.endswith("FunctionArn")]
    return [
        name
        for name in names
        if published(stack.configuration(name, "$LATEST")) != published(stack.configuration(name))
    ]


def published(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that belongs to a version."""
    names = ("CodeSha256", "Environment", "Timeout", "MemorySize", "Architectures", "Layers", "LoggingConfig", "Role")
    return {name: configuration.get(name) for name in names}


def test_own_url_is_no_new_version(second: Stack) -> None:
    """If WebhookBaseUrl is set to the API's own URL, the deployment succeeds, and publishes no new version."""
    api = second.cloud.resource("WebhookApi")
    before = parameters(second)["WebhookBaseUrl"]
    second.set(WebhookBaseUrl="")
    url = setting("SendSms", "Environment", "Variables", "WEBHOOK_URL")(second)
    version = second.configuration("SendSms")["Version"]
    second.set(WebhookBaseUrl=url.removesuffix("/webhook"))

    assert api in url
    assert version == second.configuration("SendSms")["Version"]
    second.set(WebhookBaseUrl=before)


@pytest.mark.parametrize(
    "values",
    [
        {"SendBatchSize": "11"},
        {"SendBatchSize": "1000", "SendBatchWindow": "0"},
        {"PollingSchedule": "cron(* * * * * *)"},
        {"AutoReply": "Hello {{name}}"},
    ],
    ids=str,
)
def test_contradictions_are_refused_before_anything_is_made(second: Stack, values: dict[str, str]) -> None:
    """Values that contradict each other are refused before the stack begins to change."""
    events = second.cloud.client("cloudformation").describe_stack_events(StackName=NAME)["StackEvents"]
    with pytest.raises(ClientError, match="ValidationError"):
        second.set(**values)

    assert events == second.cloud.client("cloudformation").describe_stack_events(StackName=NAME)["StackEvents"]


# ---------------------------------------------------------------- what the emulator refuses


def refused_condition(cloud: Cloud) -> bool:
    """Return whether a webhook's event goes to the buffer, because the function may not put it on the bus."""
    text = uuid.uuid4().hex
    answer = send(cloud.inbound(text).request(cloud.target()), cloud.target())
    assert 200 == answer.status
    return cloud.in_queue("BufferQueue") > 0


def refused_without_tls(cloud: Cloud) -> bool:
    """Return whether an identity that may do anything to queues gets an explicit deny."""
    everything = {"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}
    url = cloud.info["aws_endpoint_url"]
    keys = deployer.credentials(url, "rights-of-queues", {"Version": "2012-10-17", "Statement": [everything]})
    sqs = boto3.client("sqs", endpoint_url=url, **{name.lower(): value for name, value in keys.items()})
    try:
        sqs.get_queue_attributes(QueueUrl=cloud.resource("DeadLetterQueue"))
    except ClientError as error:
        return "explicit deny" in str(error)
    return False


UNKNOWN = ("AWS::CloudWatch::CompositeAlarm/*", "AWS::Logs::QueryDefinition/*")
"""Resource types that the emulator does not deploy."""
REFUSED: dict[str, Callable[[Cloud], bool]] = {
    "AWS::SQS::QueuePolicy/*/Statement/OverTlsOnly": refused_without_tls,
    "AWS::Serverless::Function/*/Condition/Null/events:source": refused_condition,
}


def test_list_of_what_is_left_out_is_tried() -> None:
    """Each entry of `deploy.LEFT_OUT` is tried in one of the tests below."""
    assert deploy.LEFT_OUT.keys() == REFUSED.keys() | {*UNKNOWN}


@pytest.mark.parametrize("pattern", UNKNOWN)
@pytest.mark.usefixtures("second")
def test_type_that_is_left_out_is_unknown(cloud: Cloud, folder: Path, pattern: str) -> None:
    """If a resource type on the list is left in the template, the deployment fails: the emulator does not know it."""
    others = deploy.LEFT_OUT.keys() - {pattern}
    try:
        assert sorted(others) == deploy.prepare(folder, deploy.BUILT, others)
        with pytest.raises(LocalError, match=f"(?s)Unrecognized resource types: .{pattern.removesuffix('/*')}"):
            deploy.deploy(folder, cloud.info["aws_endpoint_url"], {}, NAME)
    finally:
        deploy.prepare(folder, deploy.BUILT)


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_left_out_is_refused(cloud: Cloud, folder: Path, second: Stack, pattern: str) -> None:
    """If a part on the list is left in the template, the stack does not work, so the list is no longer than needed."""
    others = deploy.LEFT_OUT.keys() - {pattern}
    try:
        assert sorted(others) == deploy.prepare(folder, deploy.BUILT, others)
        deploy.deploy(folder, cloud.info["aws_endpoint_url"], {}, NAME)
        assert REFUSED[pattern](second.cloud)
    finally:
        deploy.prepare(folder, deploy.BUILT)


# ---------------------------------------------------------------- one is deleted


def test_one_goes_and_the_other_works(cloud: Cloud, second: Stack) -> None:
    """After one stack is deleted, the other still works, and the deleted one's ledger and failed queue remain."""
    cloudformation = cloud.client("cloudformation")
    ledger, failed = second.cloud.resource("Ledger"), second.cloud.resource("FailedQueue")
    send_queue = second.cloud.resource("SendQueue")
    cloudformation.delete_stack(StackName=NAME)
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName=NAME, WaiterConfig={"Delay": 0.2, "MaxAttempts": 300}
    )
    text, queued = uuid.uuid4().hex, uuid.uuid4().hex
    sid = cloud.invoke("SendSms", {"to": TO, "message": text})["sid"]
    cloud.client("sqs").send_message(
        QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps({"to": TO, "message": queued})
    )

    assert [sid] == [message["sid"] for message in cloud.stored(text)]
    eventually(lambda: cloud.stored(queued), until=lambda stored: len(stored) == 1)
    assert receives(cloud)
    assert "ACTIVE" == cloud.client("dynamodb").describe_table(TableName=ledger)["Table"]["TableStatus"]
    cloud.client("sqs").get_queue_attributes(QueueUrl=failed, AttributeNames=["QueueArn"])
    with pytest.raises(ClientError, match="NonExistentQueue"):
        cloud.client("sqs").get_queue_attributes(QueueUrl=send_queue, AttributeNames=["QueueArn"])
