"""What the stack on this machine gives a shell, and which ports it takes."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local import emulators, processes, shell

STACK: dict[str, Any] = {
    "aws_endpoint_url": "http://127.0.0.1:4566",
    "region": "us-east-1",
    "stack_name": "twilio-connector-local",
    "caller": {"access_key_id": "AKIACALLER", "secret_access_key": "caller's key"},
    "twilio": {"url": "http://127.0.0.1:4013", "account_sid": "AC0", "auth_token": "made up", "number": "+15551234567"},
    "outputs": {"SendSmsFunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:f:live"},
}


def typed(commands: str, program: str = "sh") -> str:
    """Return what a shell prints that has read the file."""
    script = f"{shell.environment(STACK)}\n{commands}\n"
    done = subprocess.run([program, "-euc", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_shell_has_the_stack(program: str) -> None:
    """Endpoint, region and outputs are variables of the shell, the outputs under their own names."""
    printed = typed('echo "$AWS_ENDPOINT_URL $AWS_REGION $SendSmsFunctionArn"', program)

    assert f"http://127.0.0.1:4566 us-east-1 {STACK['outputs']['SendSmsFunctionArn']}\n" == printed


def test_shell_has_both_identities() -> None:
    """It begins as the deployer, and becomes the caller and the deployer again on demand."""
    show = 'echo "$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY"'

    assert "test test\nAKIACALLER caller's key\ntest test\n" == typed(f"{show}; as_caller; {show}; as_deployer; {show}")


def test_shell_forgets_the_users_own_aws() -> None:
    """A profile or a session of the user's own is not used."""
    printed = typed(
        "export AWS_PROFILE=mine AWS_SESSION_TOKEN=mine\n"
        + shell.environment(STACK)
        + 'echo "${AWS_PROFILE-} ${AWS_SESSION_TOKEN-} $AWS_CONFIG_FILE $AWS_SHARED_CREDENTIALS_FILE"'
    )

    assert "  /dev/null /dev/null\n" == printed


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_stay_the_same(tmp_path: Path) -> None:
    """A stack that is started again gets the ports that it had."""
    first = emulators.choose_ports(tmp_path)

    assert first == emulators.choose_ports(tmp_path) == json.loads((tmp_path / "ports.json").read_text())


def test_port_that_somebody_took_is_another(tmp_path: Path, taken: int) -> None:
    """A port on which somebody else listens is given up, the other one stays."""
    free = processes.free_port()
    (tmp_path / "ports.json").write_text(json.dumps({"ministack": taken, "emulate": free}))

    ports = emulators.choose_ports(tmp_path)

    assert taken != ports["ministack"]
    assert free == ports["emulate"]
