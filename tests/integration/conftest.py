"""Fixtures: each pytest worker has a local stack of its own, beside the one that `make local` may have started."""

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
"""Short time limits, so that tests need not wait long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this package as `integration`."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("integration")


# Package scope: a worker stops its stack before it runs unit tests, which need clocks and sockets for themselves.
@pytest.fixture(scope="package")
def folder(worker_id: str) -> Path:
    """Return the folder with the files of this worker's stack."""
    return FOLDER / f"test-{worker_id}"


@pytest.fixture(scope="package")
def aws_proxy() -> Iterator[AwsProxy]:
    """Start the proxy between the functions and AWS."""
    with AwsProxy() as proxy:
        yield proxy


@pytest.fixture(scope="package")
def twilio_relay() -> Iterator[FaultServer]:
    """Start the relay between the functions and Twilio."""
    with FaultServer() as relay:
        yield relay


@pytest.fixture(scope="package")
def stack(folder: Path, aws_proxy: AwsProxy, twilio_relay: FaultServer) -> Iterator[dict[str, Any]]:
    """Start the stack, and stop it after the last test."""
    local_stack.down(folder)
    try:
        # DEBUG logs the most, for the tests that search the logs for leaks.
        parameters = {"LogLevel": "DEBUG", "TwilioApiUrl": twilio_relay.url, **QUICK}
        running = local_stack.up(folder, parameters=parameters, functions_aws_url=aws_proxy.url)
        aws_proxy.upstream_url = running["aws_endpoint_url"]
        twilio_relay.upstream = running["twilio"]["url"]
        # The template's visibility timeouts are minutes, too long to wait for a redelivery.
        sqs = client("sqs", running["aws_endpoint_url"])
        for queue, seconds in {"SendQueueArn": "20", "BufferQueueArn": "2"}.items():
            url = sqs.get_queue_url(QueueName=running["outputs"][queue].split(":")[-1])["QueueUrl"]
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": seconds})
        yield running
    finally:
        local_stack.down(folder)


@pytest.fixture(autouse=True)
def _no_faults_left(aws_proxy: AwsProxy, twilio_relay: FaultServer) -> Iterator[None]:
    """Remove all faults after each test, so that they do not affect the next one."""
    yield
    aws_proxy.reset()
    twilio_relay.reset()


@pytest.fixture(scope="package")
def cloud(stack: dict[str, Any]) -> Cloud:
    """Return the stack with the helpers for tests."""
    return Cloud(stack)


@pytest.fixture(scope="package")
def layer(stack: dict[str, Any], folder: Path) -> Path:  # noqa: ARG001 builds the layer
    """Return the folder of the built layer that the stack uses."""
    return folder / "build" / "TwilioLayer" / "python"


@pytest.fixture(scope="package")
def other_connections(cloud: Cloud) -> None:
    """Store connections: one that Twilio refuses, an invalid one, and one without a token to verify callbacks."""
    default = json.loads(cloud.client("secretsmanager").get_secret_value(SecretId="twilio/default")["SecretString"])
    without_token = {name: value for name, value in default.items() if name != "auth_token"}
    secrets = {
        "without-token": json.dumps(without_token),
        "refused": json.dumps(default | {"api_key_secret": "no-longer-valid"}),
        "broken": '{"account_sid": "AC1"}',
    }
    for name, secret in secrets.items():
        cloud.client("secretsmanager").create_secret(Name=f"twilio/{name}", SecretString=secret)
