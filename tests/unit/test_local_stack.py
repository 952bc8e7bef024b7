"""The shell variables of the local stack, and its ports."""

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
    """Return the output of commands in a shell that has loaded the stack's environment."""
    script = f"{shell.environment(STACK)}\n{commands}\n"
    done = subprocess.run([program, "-euc", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_shell_has_the_stack(program: str) -> None:
    """Endpoint, region and outputs are shell variables, and the outputs keep their own names."""
    printed = typed('echo "$AWS_ENDPOINT_URL $AWS_REGION $SendSmsFunctionArn"', program)

    assert f"http://127.0.0.1:4566 us-east-1 {STACK['outputs']['SendSmsFunctionArn']}\n" == printed


def test_shell_has_both_identities() -> None:
    """The shell starts as the deployer, and can switch to the caller and back."""
    show = 'echo "$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY"'

    assert "test test\nAKIACALLER caller's key\ntest test\n" == typed(f"{show}; as_caller; {show}; as_deployer; {show}")


def test_shell_forgets_the_users_own_aws() -> None:
    """The shell does not use a profile or session of the user's own."""
    printed = typed(
        "export AWS_PROFILE=mine AWS_SESSION_TOKEN=mine\n"
        + shell.environment(STACK)
        + 'echo "${AWS_PROFILE-} ${AWS_SESSION_TOKEN-} $AWS_CONFIG_FILE $AWS_SHARED_CREDENTIALS_FILE"'
    )

    assert "  /dev/null /dev/null\n" == printed


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which another server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_stay_the_same(tmp_path: Path) -> None:
    """A stack that is started again keeps its ports."""
    first = emulators.choose_ports(tmp_path)

    assert first == emulators.choose_ports(tmp_path) == json.loads((tmp_path / "ports.json").read_text())


def test_port_that_somebody_took_is_another(tmp_path: Path, taken: int) -> None:
    """A port that another server took is replaced, and the other port stays."""
    free = processes.free_port()
    (tmp_path / "ports.json").write_text(json.dumps({"ministack": taken, "emulate": free}))

    ports = emulators.choose_ports(tmp_path)

    assert taken != ports["ministack"]
    assert free == ports["emulate"]
