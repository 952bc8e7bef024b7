"""The stack of a run, and the faults in front of it."""

import functools
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import requests

from local import ROOT, emulators, loopback, processes
from local import stack as local_stack
from local.aws import client
from local.deploy import STACK_NAME
from local.seed import ACCOUNT_SID, API_KEY_SECRET, API_KEY_SID, AUTH_TOKEN, NUMBER, call_twilio
from tests.chaos.drain import Twilio
from tests.chaos.journal import FAULTS, MADE, Journal
from tests.chaos.schedule import BROKEN, HANGING, owner
from tests.faults import AwsFault, AwsProxy, Fault, FaultServer, Lag, Reply, Request, aws, faults
from tests.faults.aws import AwsCall
from tests.faults.lag import WRITES
from tests.faults.upstream import Upstream
from tests.faults.wire import Closed, Exchange
from tests.mutants import Target

PARAMETERS = {
    "LogLevel": "WARNING",
    "UnknownReportAfter": "3",
    "SendSmsTimeout": "30",
    "SendLease": "30",
    "SendBatchSize": "3",
    "SendThreads": "3",
    "SendMaximumConcurrency": "4",
}
"""Short waits, and small batches, so that a killed process interrupts few other sends."""

KEY_ONLY = "key-only"
"""A connection without an auth token, so that its callbacks cannot be checked."""
_PREFIX = "twilio/"
_ACCOUNT = {"account_sid": ACCOUNT_SID, "default_from": NUMBER}
_API_KEY = {"api_key_sid": API_KEY_SID, "api_key_secret": API_KEY_SECRET}
_TOKEN = {"auth_token": AUTH_TOKEN}

_NAME = "chaos"
_MACHINE = ROOT / "examples" / "step-functions" / "send-sms.asl.json"
_DEDUPLICATION_ID = re.compile(rb'"deduplication_id": ?\{"S": ?"([^"]+)"|"id": ?\{"S": ?"(text:[^"]+)"')
VISIBILITY_SECONDS = {"BufferQueue": "5", "SendQueue": "35"}
"""The queues' visibility timeouts in seconds; in the template they are minutes."""
_WORDS = re.compile(rb"\bChaos ([!#-\[\]-~]+)")
_TWIN = re.compile(r"\bfault=([\w,]+);n=(\d)$")
_STRANGER = re.compile(r"\bstranger=(\w+)")
_LAG_SECONDS = 3
_WAIT_SCALE = 1 / 30
"""A minute of the state machine takes two seconds."""


class Relay(FaultServer):
    """The fault server in front of Twilio. It records its faults, and the key of each message that Twilio creates.

    Each twin has its own fault: the first or the second that their text names. With `stranger=first`, a stranger sends
    the same text before the request is handled; with `stranger=second`, before it is answered.
    """

    def __init__(self, journal: Journal) -> None:
        """Write to a journal."""
        self._journal = journal
        self._copied: set[str] = set()
        self.made: dict[str, str] = {}
        """The SID of each key's message, if Twilio was asked to send callbacks about it to the connector."""
        self.silent: dict[str, tuple[str, str]] = {}
        """For each key whose callbacks are turned off: its message's SID, and the URL of the callbacks."""
        super().__init__()

    def _marker(self, request: Request) -> Fault | None:
        key = owner(request.form) if request.method == "POST" else None
        if key is None:
            return super()._marker(request)
        twin = _TWIN.search(key)
        fault = self.named[twin[1].split(",")[int(twin[2])]] if twin else super()._marker(request)
        if fault is None or fault is faults.OK:
            return fault
        act = _noted(fault.act, self._journal, kind=fault.name, key=key)
        stranger = _STRANGER.search(key)
        if stranger and key not in self._copied:
            self._copied.add(key)
            if stranger[1] == "first":
                self._copy(request)
            else:
                act = _after(functools.partial(self._copy, request), act)
        return replace(fault, act=act)

    def _forwarded(self, upstream: Upstream, request: Request) -> Reply:
        reply = super()._forwarded(upstream, request)
        key = owner(request.form) if request.method == "POST" else None
        if key and reply.status == requests.codes.created:
            url = request.form.get("StatusCallback", [""])[0].partition("#")[0]
            callback = "?send=" in url and "callback=none" not in key
            sid = json.loads(reply.body)["sid"]
            self._journal.write(MADE, key=key, sid=sid, callback=callback)
            if callback:
                self.made[key] = sid
            elif "?send=" in url:
                self.silent[key] = sid, url
        return reply

    def _copy(self, request: Request) -> None:
        """Send the same text directly to Twilio, as a stranger that does not use the connector."""
        form = {name: values[0] for name, values in request.form.items() if name in {"To", "From", "Body"}}
        answer = loopback.request(
            "POST",
            f"{self.upstream}{request.path}",
            data=form | {"StatusCallback": ""},
            auth=(ACCOUNT_SID, AUTH_TOKEN),
        )
        self._journal.write(MADE, key=None, sid=answer.json()["sid"], callback=False)


class Proxy(AwsProxy):
    """The proxy in front of AWS. It records its faults.

    An item in the table of published events does not contain a key. `keys` maps the `deduplication_id` of an event, or
    the id of a signed text, to the key.
    """

    def __init__(self, journal: Journal) -> None:
        """Write to a journal."""
        self._journal = journal
        self.keys: dict[str, str] = {}
        super().__init__()

    def _chosen(self, call: AwsCall, body: bytes) -> tuple[AwsCall, aws.Kind | None]:
        if call.operation in WRITES and (found := _DEDUPLICATION_ID.search(body)):
            body += b'"%b"' % self.keys.get((found[1] or found[2]).decode(), "").encode()
        call, kind = super()._chosen(call, body)
        if kind:
            name = f"{call.operation}.{kind.name}"
            key = call.marker_text
            if key is None and (words := _WORDS.search(body)):
                key = words[1].decode()
            kind = replace(kind, act=_noted(kind.act, self._journal, kind=name, key=key))
        return call, kind


def _after(first: Callable[[], None], act: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    def both(exchange: Exchange) -> None:
        first()
        act(exchange)

    return both


def _noted[E: Exchange](act: Callable[[E], None], journal: Journal, **line: str | None) -> Callable[[E], None]:
    """Return the action of a fault, followed by a record of the fault in the journal."""

    def noted(exchange: E) -> None:
        try:
            act(exchange)
        except LookupError:
            exchange.close()  # another fault killed the client's process first
            return
        except (OSError, Closed):  # the client gave up first
            journal.write(FAULTS, **line)
            raise
        journal.write(FAULTS, **line)

    return noted


class Setting(NamedTuple):
    """The parts of a stack that a run uses."""

    folder: Path
    stack: dict[str, Any]
    topic: str
    machine: str
    relay: Relay
    proxy: Proxy
    buffer_url: str
    dead_letter_url: str
    deliveries_table: str

    @property
    def target(self) -> Target:
        """The target of webhooks: the stack's URL, and the account whose token signs them."""
        base = self.stack["webhook_url"].removesuffix("/webhook")
        return Target(base, ACCOUNT_SID, AUTH_TOKEN)

    @property
    def owner(self) -> tuple[str, str]:
        """The account's own credentials: its SID and auth token."""
        return ACCOUNT_SID, AUTH_TOKEN

    @property
    def twilio(self) -> Twilio:
        """The emulator of Twilio, called directly and not through the relay."""
        accounts = [self.owner, (API_KEY_SID, API_KEY_SECRET)]
        return Twilio(emulators.url(self.folder, "emulate"), accounts, ACCOUNT_SID)

    @property
    def log(self) -> Path:
        """The log file of AWS's emulator."""
        return processes.log_path(self.folder, "ministack")

    def break_secrets(self) -> None:
        """Store a malformed secret, and one with a wrong token; the third broken connection has no secret."""
        for name, text in zip(
            BROKEN, ('{"account_sid": ', json.dumps(_ACCOUNT | {"auth_token": "0" * 32})), strict=False
        ):
            self._store(name, text)

    def fix_secrets(self) -> None:
        """Store valid secrets for the broken connections."""
        for name in BROKEN:
            self._store(name, json.dumps(_ACCOUNT | _TOKEN))

    def _store(self, name: str, text: str) -> None:
        store_secret(self.stack["aws_endpoint_url"], name, text)

    def tell(self, sid: str, status: str) -> None:
        """Set a message's status in Twilio's emulator, so that the emulator sends a status callback."""
        url = f"{emulators.url(self.folder, 'emulate')}/_twilio/simulate/message-status"
        call_twilio("POST", url, {"MessageSid": sid, "Status": status})


@contextmanager
def setting(folder: Path, journal: Journal, seed: int) -> Iterator[Setting]:
    """Start a stack whose functions reach AWS and Twilio only through proxy and relay; stop it at the end."""
    local_stack.down(folder)
    with Relay(journal) as relay, Proxy(journal) as proxy:
        proxy.lag = Lag(_LAG_SECONDS)
        try:
            parameters = PARAMETERS | {"TwilioApiUrl": relay.url}
            stack = local_stack.up(folder, parameters=parameters, functions_aws_url=proxy.url)
            aws_url = stack["aws_endpoint_url"]
            relay.upstream, proxy.upstream_url = emulators.url(folder, "emulate"), aws_url
            topic = client("sns", aws_url).create_topic(Name=_NAME)["TopicArn"]
            stack = local_stack.redeploy(folder, parameters={"SendTopicArn": topic})
            for fault in unmarked(seed):
                proxy.add(fault)
            for name in HANGING:
                store_secret(aws_url, name, json.dumps(_ACCOUNT | _API_KEY | _TOKEN))
            store_secret(aws_url, KEY_ONLY, json.dumps(_ACCOUNT | _API_KEY))
            machine, others = _machine(aws_url, stack["outputs"]), _resources(aws_url)
            yield Setting(folder, stack, topic, machine, relay, proxy, *others)
        finally:
            local_stack.down(folder)


def store_secret(aws_url: str, name: str, text: str) -> None:
    """Create the secret of a connection, or replace it if it exists."""
    secrets = client("secretsmanager", aws_url)
    secret = f"{_PREFIX}{name}"
    try:
        secrets.create_secret(Name=secret, SecretString=text)
    except secrets.exceptions.ResourceExistsException:
        secrets.put_secret_value(SecretId=secret, SecretString=text)


def secrets_hang() -> AwsFault:
    """Return the fault of a Secrets Manager that hangs on requests for some secrets."""
    return AwsFault(aws.HANG_BEFORE, operation="GetSecretValue", contains=f"{_PREFIX}hang-".encode())


def bus_away() -> AwsFault:
    """Return the fault of a bus that throttles all requests."""
    return AwsFault(aws.THROTTLE, operation="PutEvents")


def table_away(table: str) -> AwsFault:
    """Return the fault of a DynamoDB that throttles all requests for one table."""
    return AwsFault(aws.THROTTLE, service="dynamodb", contains=f'"{table}"'.encode())


def token_away(seed: str) -> Iterator[AwsFault]:
    """Yield faults for functions that read a token: for some, which the seed selects, both attempts fail."""
    chance = random.Random(seed)
    for turn in sorted(chance.sample(range(0, 40, 2), 8)):
        kind = chance.choice((aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE))
        yield AwsFault(kind, operation="GetSecretValue", skip=turn, times=2)


def unmarked(seed: int) -> Iterator[AwsFault]:
    """Yield faults for calls that do not name a key: they hit some of the first calls, which the seed selects."""
    chance = random.Random(seed)
    for operation, one_in, count in (("GetSecretValue", 4, 40), ("ChangeMessageVisibility", 3, 60)):
        for turn in range(count):
            if chance.random() < 1 / one_in:
                kind = chance.choice((aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE, aws.DROP_AFTER))
                yield AwsFault(kind, operation=operation, skip=turn, times=1)


def _resources(aws_url: str) -> tuple[str, str, str]:
    """Shorten the queues' visibility timeouts; return the buffer, its dead-letter queue and the deliveries table."""
    cloudformation = client("cloudformation", aws_url)

    def physical(name: str) -> str:
        found = cloudformation.describe_stack_resource(StackName=STACK_NAME, LogicalResourceId=name)
        return str(found["StackResourceDetail"]["PhysicalResourceId"])

    for name, seconds in VISIBILITY_SECONDS.items():
        client("sqs", aws_url).set_queue_attributes(QueueUrl=physical(name), Attributes={"VisibilityTimeout": seconds})
    return physical("BufferQueue"), physical("BufferDeadLetterQueue"), physical("Deliveries")


def _machine(aws_url: str, outputs: dict[str, str]) -> str:
    """Create the example's state machine, with shorter waits; return its ARN."""
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
