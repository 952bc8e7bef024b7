"""The README does what it says: its commands run on the stack on this machine, and print what it shows."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from tests.integration.cloud import Cloud
from tests.readme import BLOCKS, ROOT, Block, marked

_SECONDS = 60


class Reader:
    """Somebody who types the README's commands from top to bottom, in one shell."""

    def __init__(self, stack: dict[str, Any], folder: Path) -> None:
        """Sit down at a folder that looks like the project's."""
        self._stack = stack
        self._folder = folder
        self._runs: dict[Block, subprocess.CompletedProcess[str]] = {}
        self._variables = {"HOME": str(folder), "LANG": "C.UTF-8"} | {
            "AWS_ENDPOINT_URL": stack["aws_endpoint_url"],
            "AWS_REGION": stack["region"],
            "AWS_DEFAULT_REGION": stack["region"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        (folder / "shell").touch()
        for name in ("events", "examples"):
            (folder / name).symlink_to(ROOT / name)

    def printed(self, block: Block) -> str:
        """Return what the commands of a block printed, after all blocks before it; fails if they failed."""
        for earlier in BLOCKS[: BLOCKS.index(block) + 1]:
            if earlier.mark == "save":
                (self._folder / earlier.argument).write_text(earlier.text)
            elif earlier.mark == "run" and earlier not in self._runs:
                self._runs[earlier] = self._type(earlier)
        run = self._runs[block]
        assert run.returncode == 0, f"{run.stderr}{run.stdout}"
        assert "FunctionError" not in run.stdout, run.stdout
        return run.stdout

    def _type(self, block: Block) -> subprocess.CompletedProcess[str]:
        # The stack on this machine has a name of its own, and a connection `default` already.
        commands = block.text.replace("--stack-name twilio-connector", f"--stack-name {self._stack['stack_name']}")
        commands = commands.replace("--name twilio/default", "--name twilio/from-readme")
        variables = self._variables | self._identity(block)
        exports = "".join(f"export {name}={quote(value)}\n" for name, value in variables.items())
        # The next block finds the functions and variables of this one.
        # Version 1 of the CLI asks AWS itself for queues, whatever the environment says.
        aws = f'aws() {{ command aws --endpoint-url {self._stack["aws_endpoint_url"]} "$@"; }}\n'
        script = f". ./shell\n{exports}{aws}set -aeo pipefail\n{commands}\n(declare -f; declare -px) >shell\n"
        run = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=self._folder,
            env={"PATH": f"{ROOT}/.venv-aws/bin:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if sid := re.search(r'"sid": ?"(SM[0-9a-f]{32})"', run.stdout):
            self._variables["MESSAGE_SID"] = sid[1]
        if "describe-stacks" in commands:
            # The outputs that are no addresses on this machine.
            self._variables |= {name: self._stack["outputs"][name] for name in ("ActionsApiUrl", "WebhookUrl")}
        return run

    def _identity(self, block: Block) -> dict[str, str]:
        if block.argument == "deployer":
            return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        caller = self._stack["caller"]
        return {
            "AWS_ACCESS_KEY_ID": caller["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": caller["secret_access_key"],
        }


@pytest.fixture(scope="module")
def reader(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Return a reader, and take away what the commands left in the stack."""
    yield Reader(cloud.info, tmp_path_factory.mktemp("reader"))
    cloud.client("events").delete_rule(Name="inbound-sms", EventBusName=cloud.outputs["EventBusName"])
    cloud.client("secretsmanager").delete_secret(SecretId="twilio/from-readme", ForceDeleteWithoutRecovery=True)


def like(shown: Any, real: Any) -> bool:
    """Tell whether an answer has all that the README shows of it; null may stand for anything."""
    match shown, real:
        case dict(), dict():
            return all(name in real and like(value, real[name]) for name, value in shown.items())
        case [first, *_], [*_]:
            return all(like(first, value) for value in real)
        case _:
            return shown is None or real is None or type(shown) is type(real)


def first_json(text: str) -> Any:
    """Return what a function answered; the AWS CLI prints another object after it."""
    return json.JSONDecoder().raw_decode(text)[0]


@pytest.mark.parametrize("block", marked("run"), ids=str)
def test_runs(block: Block, reader: Reader) -> None:
    """Every command runs; every call is answered with a JSON object."""
    printed = reader.printed(block)

    if "/dev/stdout" in block.text or '"$ActionsApiUrl/' in block.text:
        assert isinstance(first_json(printed), dict)


@pytest.mark.parametrize("block", marked("answer"), ids=str)
def test_answer(block: Block, reader: Reader) -> None:
    """The answer that the README shows is like the one that its command gets."""
    command = next(earlier for earlier in reversed(BLOCKS[: BLOCKS.index(block)]) if earlier.mark == "run")
    shown, real = json.loads(block.text), first_json(reader.printed(command))

    if block.argument == "exact":
        assert shown == real
    else:
        assert like(shown, real), real
