"""The Step Functions example, deployed and started by its README's commands: each execution sends at most once."""

import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults import FaultServer, Request, faults
from tests.integration.cloud import Cloud, eventually
from tests.readme import ROOT

TO = "+15005550006"

_README = (ROOT / "examples" / "step-functions" / "README.md").read_text()
_COMMANDS = "\n".join(re.findall(r"^```sh\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL))
_PROGRAMS = [ROOT / ".venv-sam" / "bin", ROOT / ".venv-aws" / "bin"]
_SPEED = 200  # waits and retries are this many times faster
_SECONDS = 100


class Machine:
    """The deployed state machine, and what the README's last command printed."""

    def __init__(self, cloud: Cloud, printed: str) -> None:
        """Take the output of the commands."""
        self._states = cloud.client("stepfunctions")
        self.first: dict[str, Any] = json.loads(printed[printed.rindex("\n{") :])

    def start(self, sms: Any) -> str:
        """Start an execution, and return its ARN."""
        machine = self.first["stateMachineArn"]
        return str(self._states.start_execution(stateMachineArn=machine, input=json.dumps(sms))["executionArn"])

    def end(self, execution: str) -> dict[str, Any]:
        """Wait until an execution has ended, and return it."""
        return eventually(
            lambda: self._states.describe_execution(executionArn=execution),
            until=lambda run: run["status"] != "RUNNING",
        )

    def run(self, sms: Any) -> dict[str, Any]:
        """Start an execution, wait for its end, and return it."""
        return self.end(self.start(sms))

    def events(self, execution: str, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind in an execution's history."""
        pages = self._states.get_paginator("get_execution_history").paginate(executionArn=execution)
        return [event for page in pages for event in page["events"] if event["type"] == kind]


@pytest.fixture(scope="module")
def machine(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Deploy the example with the README's commands, and shorten its waits from minutes to less than a second."""
    _set_wait_scale(cloud, 1 / _SPEED)
    try:
        yield Machine(cloud, _typed(cloud, tmp_path_factory.mktemp("home")))
    finally:
        cloud.client("cloudformation").delete_stack(StackName="twilio-send-sms")
        _set_wait_scale(cloud, 1)


def _set_wait_scale(cloud: Cloud, scale: float) -> None:
    url = f"{cloud.info['aws_endpoint_url']}/_ministack/config"
    requests.post(url, json={"stepfunctions._SFN_WAIT_SCALE": scale}, timeout=_SECONDS).raise_for_status()


def _typed(cloud: Cloud, home: Path) -> str:
    """Run the README's commands, and return what they printed."""
    # The local stack has a name of its own.
    commands = _COMMANDS.replace("--stack-name twilio-connector", f"--stack-name {cloud.info['stack_name']}")
    run = subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail\n{commands}"],
        cwd=ROOT,
        env={
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_DEFAULT_REGION": cloud.info["region"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": cloud.info["aws_endpoint_url"],
            "AWS_SECRET_ACCESS_KEY": "test",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join([*map(str, _PROGRAMS), os.environ["PATH"]]),
            "SAM_CLI_POLL_DELAY": "0.2",
            "SAM_CLI_TELEMETRY": "0",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout


@pytest.fixture
def failing(twilio_relay: FaultServer) -> FaultServer:
    """Return the relay, with a refusal by 404 as an additional fault."""
    twilio_relay.named["404_before"] = faults.before("404", faults.NOT_FOUND)
    return twilio_relay


def unique(fault: str = "ok") -> str:
    """Return a text that no other test sends; the relay reads its faults from it."""
    return f"From a state machine {uuid.uuid4().hex} fault={fault}"


def sends(relay: FaultServer, text: str) -> list[Request]:
    """Return the relay's requests to send this text."""
    return [each for each in relay.requests if each.method == "POST" and each.form.get("Body") == [text]]


def test_readme(machine: Machine) -> None:
    """The README's commands deploy the machine, and start an execution that sends."""
    result = machine.end(machine.first["executionArn"])

    assert "SUCCEEDED" == result["status"]
    assert "From a state machine." == json.loads(result["output"])["body"]


def test_sent(cloud: Cloud, machine: Machine) -> None:
    """An execution sends one message, and its output is that message."""
    text = unique()

    result = machine.run({"to": TO, "message": text})

    assert "SUCCEEDED" == result["status"]
    assert [json.loads(result["output"])["sid"]] == [message["sid"] for message in cloud.stored(text)]


def test_executions_are_two_messages(cloud: Cloud, machine: Machine) -> None:
    """Two executions with the same input send two messages, because each has a key of its own."""
    sms = {"to": TO, "message": unique()}

    results = [machine.run(sms), machine.run(sms)]

    assert 2 == len({json.loads(result["output"])["sid"] for result in results})
    assert 2 == len(cloud.stored(sms["message"]))


def test_key_of_the_input(cloud: Cloud, machine: Machine) -> None:
    """Two executions with the same key in their inputs send one message; another input with that key fails."""
    sms = {"to": TO, "message": unique(), "idempotency_key": uuid.uuid4().hex}

    first, again = machine.run(sms), machine.run(sms)
    other = machine.run(sms | {"message": unique()})

    assert json.loads(first["output"])["sid"] == json.loads(again["output"])["sid"]
    assert ("FAILED", "NotSent") == (other["status"], other["error"])
    assert other["cause"].startswith("IdempotencyConflictError: ")
    assert 1 == len(cloud.stored(sms["message"]))


@pytest.mark.usefixtures("other_connections")
@pytest.mark.parametrize(
    ("sms", "error"),
    [
        ({"to": "nobody"}, "InvalidInputError"),
        ({"to": TO, "connection": "missing"}, "ConnectionNotFoundError"),
        ({"to": TO, "connection": "broken"}, "ConnectionInvalidError"),
        ({"to": TO, "connection": "refused"}, "TwilioAuthenticationError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_not_sent(sms: dict[str, str], error: str, cloud: Cloud, machine: Machine) -> None:
    """If the message certainly was not sent, the execution ends as NotSent at once, with the error's class as cause."""
    text = unique()

    execution = machine.start({"message": text, **sms})
    result = machine.end(execution)

    assert ("FAILED", "NotSent") == (result["status"], result["error"])
    assert result["cause"].startswith(f"{error}: ")
    assert ([], []) == (cloud.stored(text), machine.events(execution, "WaitStateEntered"))


def test_no_object(machine: Machine) -> None:
    """An execution whose input is not an object ends as NotSent."""
    result = machine.run("Hello")

    assert ("FAILED", "NotSent") == (result["status"], result["error"])


@pytest.mark.parametrize(
    ("fault", "failures"),
    [
        ("21611_before,ok", 1),
        ("21611_before,21611_before,ok", 2),
        # send_sms itself makes three attempts.
        ("429_before,429_before,429_before,ok", 1),
    ],
)
def test_retried(fault: str, failures: int, cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """A message that certainly was not sent is retried with the same key, if the error may pass."""
    text = unique(fault)

    execution = machine.start({"to": TO, "message": text})
    result = machine.end(execution)

    assert "SUCCEEDED" == result["status"]
    assert [json.loads(result["output"])["sid"]] == [message["sid"] for message in cloud.stored(text)]
    assert fault.split(",") == [each.fault for each in sends(failing, text)]
    assert failures == len(machine.events(execution, "TaskFailed"))
    # The status callback's URL has a hash of the key.
    assert 1 == len({each.form["StatusCallback"][0] for each in sends(failing, text)})


@pytest.mark.parametrize(
    ("fault", "end", "error", "attempts"),
    [
        ("21610_before", "RecipientOptedOut", "RecipientOptedOutError", 1),
        ("21211_before", "NotSent", "TwilioRejectedError", 1),
        ("404_before", "NotSent", "TwilioNotFoundError", 1),
        ("21611_before", "NotSent", "SenderQueueFullError", 6),
    ],
)
def test_refused(
    fault: str, end: str, error: str, attempts: int, cloud: Cloud, failing: FaultServer, machine: Machine
) -> None:
    """A refused message ends by the class of the refusal; if the sender's queue is full, only after the last retry."""
    text = unique(fault)

    result = machine.run({"to": TO, "message": text})

    assert ("FAILED", end) == (result["status"], result["error"])
    assert result["cause"].startswith(f"{error}: ")
    assert (attempts, []) == (len(sends(failing, text)), cloud.stored(text))


def test_not_reached(failing: FaultServer, machine: Machine) -> None:
    """While Twilio cannot be reached, the send is retried. When Twilio is back, the message is sent once."""
    text = unique()

    with failing.refusing():
        execution = machine.start({"to": TO, "message": text})
        failed = eventually(lambda: machine.events(execution, "TaskFailed"), until=bool)
    result = machine.end(execution)

    assert "TwilioUnavailableError" == failed[0]["taskFailedEventDetails"]["error"]
    assert ("SUCCEEDED", 1) == (result["status"], len(sends(failing, text)))


def test_lost_answer(cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """A message whose answer was lost is found, and not sent again."""
    text = unique("reset_after,ok")

    result = machine.run({"to": TO, "message": text})

    assert "SUCCEEDED" == result["status"]
    assert [json.loads(result["output"])["sid"]] == [message["sid"] for message in cloud.stored(text)]
    assert 1 == len(sends(failing, text))


def test_killed(cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """If the function is killed after Twilio accepted the message, a later attempt finds it by its status callback."""
    text = unique("kill_after,ok")

    execution = machine.start({"to": TO, "message": text})
    result = machine.end(execution)

    assert "SUCCEEDED" == result["status"]
    assert [json.loads(result["output"])["sid"]] == [message["sid"] for message in cloud.stored(text)]
    assert machine.events(execution, "WaitStateEntered")
    assert 1 == len(sends(failing, text))


def test_unknown(cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """A send whose outcome stays unknown is looked up five more times, not sent again, and ends as OutcomeUnknown."""
    text = unique("reset_before,ok")

    execution = machine.start({"to": TO, "message": text})
    result = machine.end(execution)

    assert ("FAILED", "OutcomeUnknown") == (result["status"], result["error"])
    assert result["cause"].startswith("OutcomeUnknownError: ")
    assert (1, []) == (len(sends(failing, text)), cloud.stored(text))
    assert (6, 5) == (
        len(machine.events(execution, "TaskFailed")),
        len(machine.events(execution, "WaitStateEntered")),
    )


def test_refused_after_unknown(cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """If the connection is deleted before the next attempt, the execution ends as OutcomeUnknown.

    The error about the connection does not prove that nothing was sent.
    """
    # The function is killed, so that it does not remember the connection.
    failing.named["dead_before"] = faults.before("dead", faults.hang(then=faults.AMBIGUOUS["kill"]))
    secrets = cloud.client("secretsmanager")
    name, text = f"brief-{uuid.uuid4().hex}", unique("dead_before")
    default = secrets.get_secret_value(SecretId="twilio/default")["SecretString"]
    secrets.create_secret(Name=f"twilio/{name}", SecretString=default)

    execution = machine.start({"to": TO, "message": text, "connection": name})
    eventually(lambda: sends(failing, text), until=bool)
    secrets.delete_secret(SecretId=f"twilio/{name}", ForceDeleteWithoutRecovery=True)
    failing.release()
    result = machine.end(execution)

    assert ("FAILED", "OutcomeUnknown") == (result["status"], result["error"])
    assert result["cause"].startswith("ConnectionNotFoundError: ")


def test_in_progress(cloud: Cloud, failing: FaultServer, machine: Machine) -> None:
    """While another caller sends with the same key, an execution waits, and then returns that caller's result."""
    failing.named["slow"] = faults.hang(then=faults.OK)
    # A status callback would reveal the result before the answer does.
    sms = {"to": TO, "message": unique("slow callback=none"), "idempotency_key": uuid.uuid4().hex}

    with ThreadPoolExecutor() as pool:
        other = pool.submit(cloud.invoke, "SendSms", sms)
        eventually(lambda: sends(failing, sms["message"]), until=bool)
        execution = machine.start(sms)
        failed = eventually(lambda: machine.events(execution, "TaskFailed"), until=bool)
        failing.release()
        result = machine.end(execution)

    assert "SendInProgressError" == failed[0]["taskFailedEventDetails"]["error"]
    assert [other.result()["sid"]] == [message["sid"] for message in cloud.stored(sms["message"])]
    assert other.result()["sid"] == json.loads(result["output"])["sid"]
