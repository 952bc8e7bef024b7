"""The stack of a run, and the faults in front of it."""

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from local import ROOT, emulators, furnish, loopback
from local import stack as local_stack
from local.aws import client
from local.deploy import STACK_NAME
from tests.faults import AwsFault, AwsProxy, Fault, FaultServer, Request, aws, faults
from tests.faults.aws import AwsCall
from tests.faults.wire import Closed, Exchange
from tests.mutants import Target
from tests.torture.drain import Twilio
from tests.torture.journal import FAULTS, Journal
from tests.torture.schedule import key_of

PARAMETERS = {
    "LogLevel": "WARNING",
    "UnknownReportAfter": "1",
    "SendSmsTimeout": "30",
    "SendLease": "30",
    "SendVisibilityTimeout": "35",
    "SendBatchSize": "3",
    "SendThreads": "3",
    "SendMaximumConcurrency": "4",
}
"""Short waits, and small batches: a process that is killed takes few others' sends with it."""

_NAME = "torture"
_MACHINE = ROOT / "examples" / "step-functions" / "send-sms.asl.json"
_DEDUPLICATION_ID = re.compile(rb'"deduplication_id": ?\{"S": ?"([^"]+)"')
_BUFFER_SECONDS = "5"
"""The buffer's visibility timeout, which is minutes in the template."""
_WAIT_SCALE = 1 / 30
"""The state machine's minutes are two seconds."""


class Relay(FaultServer):
    """The fault server in front of Twilio, which writes down what it did to a message."""

    def __init__(self, journal: Journal) -> None:
        """Write to a journal."""
        self._journal = journal
        super().__init__()

    def _marker(self, request: Request) -> Fault | None:
        fault = super()._marker(request)
        if fault is None or fault is faults.OK:
            return fault
        key = key_of(request.form.get("Body", [""])[0])
        return replace(fault, act=_noted(fault.act, self._journal, kind=fault.name, key=key))


class Proxy(AwsProxy):
    """The proxy in front of AWS, which writes down what it did to a call.

    An item of the table of published events shows no key: `keys` tells whose it is, by its `deduplication_id`.
    """

    def __init__(self, journal: Journal) -> None:
        """Write to a journal."""
        self._journal = journal
        self.keys: dict[str, str] = {}
        super().__init__()

    def _chosen(self, call: AwsCall, body: bytes) -> tuple[AwsCall, aws.Kind | None]:
        if call.operation == "PutItem" and (found := _DEDUPLICATION_ID.search(body)):
            body += b'"%b"' % self.keys.get(found[1].decode(), "").encode()
        call, kind = super()._chosen(call, body)
        if kind:
            name = f"{call.operation}.{kind.name}"
            kind = replace(kind, act=_noted(kind.act, self._journal, kind=name, key=call.marker_text))
        return call, kind


def _noted[E: Exchange](act: Callable[[E], None], journal: Journal, **line: str | None) -> Callable[[E], None]:
    """Write a fault down when it is done."""

    def noted(exchange: E) -> None:
        try:
            act(exchange)
        except LookupError:
            exchange.close()  # another fault killed this process first
            return
        except (OSError, Closed):  # the client had enough of it
            journal.write(FAULTS, **line)
            raise
        journal.write(FAULTS, **line)

    return noted


class Setting(NamedTuple):
    """What a run needs to know of its stack."""

    folder: Path
    stack: dict[str, Any]
    topic: str
    machine: str
    relay_url: str
    proxy: Proxy
    buffer_url: str
    dead_letter_url: str

    @property
    def target(self) -> Target:
        """Where webhooks go, and who signs them."""
        base = self.stack["webhook_url"].removesuffix("/webhook")
        return Target(base, furnish.ACCOUNT_SID, furnish.AUTH_TOKEN)

    @property
    def owner(self) -> tuple[str, str]:
        """The account's own credentials."""
        return furnish.ACCOUNT_SID, furnish.AUTH_TOKEN

    @property
    def twilio(self) -> Twilio:
        """The emulator, past the relay."""
        accounts = [self.owner, (furnish.API_KEY_SID, furnish.API_KEY_SECRET)]
        return Twilio(emulators.url(self.folder, "emulate"), accounts, furnish.ACCOUNT_SID)

    def restart_twilio(self) -> None:
        """Start the emulator anew, empty, where it was."""
        local_stack.restart_twilio(self.folder)


@contextmanager
def setting(folder: Path, journal: Journal, seed: int) -> Iterator[Setting]:
    """Start a stack whose functions reach AWS and Twilio only through what fails, and end it."""
    local_stack.down(folder)
    with Relay(journal) as relay, Proxy(journal) as proxy:
        try:
            parameters = PARAMETERS | {"TwilioApiUrl": relay.url}
            stack = local_stack.up(folder, parameters=parameters, functions_aws_url=proxy.url)
            aws_url = stack["aws_endpoint_url"]
            relay.upstream, proxy.upstream_url = emulators.url(folder, "emulate"), aws_url
            topic = client("sns", aws_url).create_topic(Name=_NAME)["TopicArn"]
            stack = local_stack.redeploy(folder, parameters={"SendTopicArn": topic})
            for fault in unmarked(seed):
                proxy.add(fault)
            machine, queues = _machine(aws_url, stack["outputs"]), _buffer(aws_url)
            yield Setting(folder, stack, topic, machine, relay.url, proxy, *queues)
        finally:
            local_stack.down(folder)


def bus_away() -> AwsFault:
    """Return the fault of a bus that takes nothing, and says so."""
    return AwsFault(aws.THROTTLE, operation="PutEvents")


def token_away(seed: str) -> Iterator[AwsFault]:
    """Yield faults for functions that read a token: both attempts of some fail, by turn."""
    chance = random.Random(seed)
    for turn in sorted(chance.sample(range(0, 40, 2), 8)):
        kind = chance.choice((aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE))
        yield AwsFault(kind, operation="GetSecretValue", skip=turn, times=2)


def unmarked(seed: int) -> Iterator[AwsFault]:
    """Yield faults for calls that name no key: they hit some of the first calls, by turn."""
    chance = random.Random(seed)
    for operation, one_in, count in (("GetSecretValue", 4, 40), ("ChangeMessageVisibility", 3, 60)):
        for turn in range(count):
            if chance.random() < 1 / one_in:
                kind = chance.choice((aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE, aws.DROP_AFTER))
                yield AwsFault(kind, operation=operation, skip=turn, times=1)


def _buffer(aws_url: str) -> tuple[str, str]:
    """Let the buffer deliver again soon; return its URL and its dead-letter queue's."""
    cloudformation = client("cloudformation", aws_url)
    buffer, dead_letters = (
        str(
            cloudformation.describe_stack_resource(StackName=STACK_NAME, LogicalResourceId=name)["StackResourceDetail"][
                "PhysicalResourceId"
            ]
        )
        for name in ("BufferQueue", "BufferDeadLetterQueue")
    )
    client("sqs", aws_url).set_queue_attributes(QueueUrl=buffer, Attributes={"VisibilityTimeout": _BUFFER_SECONDS})
    return buffer, dead_letters


def _machine(aws_url: str, outputs: dict[str, str]) -> str:
    """Make the example's state machine, and let its minutes pass quickly; return its ARN."""
    loopback.request("POST", f"{aws_url}/_ministack/config", json={"stepfunctions._SFN_WAIT_SCALE": _WAIT_SCALE})
    definition = _MACHINE.read_text()
    for name, value in {"Partition": "aws", "SendSmsFunctionArn": outputs["SendSmsFunctionArn"]}.items():
        definition = definition.replace(f"${{{name}}}", value)
    iam = client("iam", aws_url)
    trust = {"Effect": "Allow", "Principal": {"Service": "states.amazonaws.com"}, "Action": "sts:AssumeRole"}
    invoke = {"Effect": "Allow", "Action": "lambda:InvokeFunction", "Resource": outputs["SendSmsFunctionArn"]}
    role = iam.create_role(RoleName=_NAME, AssumeRolePolicyDocument=_policy(trust))["Role"]["Arn"]
    iam.put_role_policy(RoleName=_NAME, PolicyName=_NAME, PolicyDocument=_policy(invoke))
    machines = client("stepfunctions", aws_url)
    machine = machines.create_state_machine(name=_NAME, definition=definition, roleArn=role)
    return str(machine["stateMachineArn"])


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
