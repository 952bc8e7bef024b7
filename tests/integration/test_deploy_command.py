"""The commands of `make deploy`: the real SAM CLI at a terminal, with the shipped samconfig.toml."""

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from local import ROOT, deploy
from tests.integration.cloud import Cloud

STACK_NAME = "twilio-connector"  # as in samconfig.toml

_PROMPT = re.compile(r"\[[^\]\n]+\]: $")  # with the space: click writes it separately, just before it reads
_SECONDS = 110


class Terminal:
    """A program with a terminal of its own, on which each of its questions is answered with `y`."""

    def __init__(self, *command: str, environment: dict[str, str]) -> None:
        """Start the program."""
        self.questions: list[str] = []
        self.shown = ""
        self._screen, behind = pty.openpty()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=behind, stdout=behind, stderr=behind, start_new_session=True
        )
        os.close(behind)

    def run(self) -> int:
        """Answer the program's questions until it ends, and return its exit code."""
        deadline = time.monotonic() + _SECONDS
        try:
            while more := self._read(deadline):
                self.shown += more
                line = self.shown.rpartition("\n")[2]
                if _PROMPT.search(line):
                    self.questions.append(line.strip())
                    os.write(self._screen, b"y\n")
            return self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._screen)

    def _read(self, deadline: float) -> str:
        ready, _, _ = select.select([self._screen], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"it stands still:\n{self.shown}"
        with suppress(OSError):  # the program has ended
            return os.read(self._screen, 65536).decode(errors="replace")
        return ""


@pytest.fixture
def owner(cloud: Cloud) -> Iterator[dict[str, str]]:
    """Give the environment variables of the account's owner, and delete the stack that was deployed with them."""
    foreign = ("AWS_", "SAM_", "CI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    yield kept | {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": cloud.info["region"],
        "AWS_ENDPOINT_URL": cloud.info["aws_endpoint_url"],
        "NO_PROXY": "127.0.0.1,localhost",
        "SAM_CLI_POLL_DELAY": "0.2",
    }
    cloud.client("cloudformation").delete_stack(StackName=STACK_NAME)


@pytest.mark.timeout(_SECONDS + 60)
def test_deploy_asks_once(cloud: Cloud, owner: dict[str, str], tmp_path: Path) -> None:
    """The confirmation of the changeset is the only question, and SAM creates the stack after it."""
    with deploy.building():
        subprocess.run(["make", "build"], cwd=ROOT, env=owner, check=True)
    template = without_refused(tmp_path / "built")
    terminal = Terminal(
        ".venv-sam/bin/sam",
        "deploy",
        f"--template-file={template}",  # without this option, SAM deploys its own build
        f"--config-file={ROOT / 'samconfig.toml'}",  # without this option, SAM uses the template's folder
        environment=owner,
    )

    code = terminal.run()

    assert ["Deploy this changeset? [y/N]:"] == terminal.questions, terminal.shown
    assert 0 == code, terminal.shown
    stacks = cloud.client("cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"]
    assert ["CREATE_COMPLETE"] == [stack["StackStatus"] for stack in stacks]


def without_refused(folder: Path) -> Path:
    """Copy the build without the resources that the emulator refuses, and return the copy's template."""
    deploy.copy(deploy.BUILT, folder)
    template = folder / "template.yaml"
    content = yaml.safe_load(template.read_text())
    list(deploy.leave_out(content["Resources"], deploy.LEFT_OUT))
    template.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return template


def test_make_deploy_has_no_options() -> None:
    """`make deploy` runs `sam build` and `sam deploy` without options: only those of samconfig.toml count."""
    dry = subprocess.run(["make", "--dry-run", "deploy"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)

    assert ["sam build", "sam deploy"] == re.findall(r"\.venv-sam/bin/(sam .*)", dry.stdout)
