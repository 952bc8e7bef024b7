"""A stack on this machine for each worker's tests, beside one that `make local` left running."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local import FOLDER
from local import stack as local_stack
from local.aws import client
from tests.faults import AwsProxy, FaultServer
from tests.integration.cloud import Cloud

QUICK = {
    "SendSmsTimeout": "20",
    "SendLease": "20",
    "UnknownReportAfter": "3",
}
"""Time limits of a stack on which nobody wants to wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this package."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("integration")


# Of this package: a worker ends its stack before it runs unit tests, whose clocks and sockets are for themselves.
@pytest.fixture(scope="package")
def folder(worker_id: str) -> Path:
    """Return where this worker's stack keeps its files."""
    return FOLDER / f"test-{worker_id}"


@pytest.fixture(scope="package")
def aws_proxy() -> Iterator[AwsProxy]:
    """Stand between the functions and AWS."""
    with AwsProxy() as proxy:
        yield proxy


@pytest.fixture(scope="package")
def twilio_relay() -> Iterator[FaultServer]:
    """Stand between the functions and Twilio."""
    with FaultServer() as relay:
        yield relay


@pytest.fixture(scope="package")
def stack(folder: Path, aws_proxy: AwsProxy, twilio_relay: FaultServer) -> Iterator[dict[str, Any]]:
    """Start the stack, and end it after the last test."""
    local_stack.down(folder)
    try:
        # The most that can be logged, for the tests that look for leaks.
        parameters = {"LogLevel": "DEBUG", "TwilioApiUrl": twilio_relay.url, **QUICK}
        running = local_stack.up(folder, parameters=parameters, functions_aws_url=aws_proxy.url)
        aws_proxy.upstream_url = running["aws_endpoint_url"]
        twilio_relay.upstream = running["twilio"]["url"]
        # The template's minutes are too long to wait for a second delivery.
        sqs = client("sqs", running["aws_endpoint_url"])
        for queue, seconds in {"SendQueueArn": "20", "BufferQueueArn": "2"}.items():
            url = sqs.get_queue_url(QueueName=running["outputs"][queue].split(":")[-1])["QueueUrl"]
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": seconds})
        yield running
    finally:
        local_stack.down(folder)


@pytest.fixture(autouse=True)
def _no_faults_left(aws_proxy: AwsProxy, twilio_relay: FaultServer) -> Iterator[None]:
    """Let no fault of one test hit another."""
    yield
    aws_proxy.reset()
    twilio_relay.reset()


@pytest.fixture(scope="package")
def cloud(stack: dict[str, Any]) -> Cloud:
    """Return the stack with what tests do to it."""
    return Cloud(stack)


@pytest.fixture(scope="package")
def layer(stack: dict[str, Any], folder: Path) -> Path:  # noqa: ARG001 whose layer it is
    """Return the built layer, as the stack has it."""
    return folder / "build" / "TwilioLayer" / "python"


@pytest.fixture(scope="package")
def other_connections(cloud: Cloud) -> None:
    """Store a connection that Twilio refuses, one that is none, and one that cannot believe a callback."""
    default = json.loads(cloud.client("secretsmanager").get_secret_value(SecretId="twilio/default")["SecretString"])
    without_token = {name: value for name, value in default.items() if name != "auth_token"}
    secrets = {
        "without-token": json.dumps(without_token),
        "refused": json.dumps(default | {"api_key_secret": "no-longer-valid"}),
        "broken": '{"account_sid": "AC1"}',
    }
    for name, secret in secrets.items():
        cloud.client("secretsmanager").create_secret(Name=f"twilio/{name}", SecretString=secret)
