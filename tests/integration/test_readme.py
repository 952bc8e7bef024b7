"""The commands of the README and of the docs run on the local stack, and print the answers that the pages show.

The commands of a page are run from top to bottom, as they are written, in a shell with the settings of `make shell`.
"""

import json
import os
import re
import stat
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.integration.cloud import Cloud
from tests.readme import BLOCKS, ROOT, Block, marked

_SECONDS = 90


class Reader:
    """A reader who runs a page's commands from top to bottom, in one shell."""

    def __init__(self, environment: Path, folder: Path) -> None:
        """Prepare a folder that looks like the project's."""
        self._environment = environment
        self._folder = folder
        self._runs: dict[Block, subprocess.CompletedProcess[str]] = {}
        (folder / "shell").touch()
        for name in ("events", "examples"):
            (folder / name).symlink_to(ROOT / name)

    def printed(self, block: Block) -> str:
        """Run a page's blocks up to this one, and return what this one printed; fail if it failed."""
        page = [other for other in BLOCKS if other.page == block.page]
        for earlier in page[: page.index(block) + 1]:
            if earlier.mark == "save":
                (self._folder / earlier.argument).write_text(earlier.text)
            elif earlier.mark == "run" and earlier not in self._runs:
                self._runs[earlier] = self._type(earlier)
        run = self._runs[block]
        assert run.returncode == 0, f"{run.stderr}{run.stdout}"
        assert "FunctionError" not in run.stdout, run.stdout
        return run.stdout

    def _type(self, block: Block) -> subprocess.CompletedProcess[str]:
        identity = "as_deployer" if block.argument == "deployer" else "as_caller"
        # The next block gets the functions and variables of this one.
        script = (
            f". {self._environment}\n. ./shell\n{identity}\nset -aeo pipefail\n{block.text}\n"
            "(declare -f; declare -px) >shell\n"
        )
        return subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def reader(
    request: pytest.FixtureRequest, cloud: Cloud, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """Give a reader of one page, and remove what its commands left in the stack."""
    place = tmp_path_factory.mktemp(Path(request.param).stem)
    seed(cloud, request.param, place)
    yield Reader(folder / "env", place)
    cloud.client("cloudformation").delete_stack(StackName="twilio-inbound")
    leftovers: list[tuple[str, str, dict[str, Any]]] = [
        ("secretsmanager", "restore_secret", {"SecretId": "twilio/default"}),
        ("secretsmanager", "delete_secret", {"SecretId": "twilio/marketing", "ForceDeleteWithoutRecovery": True}),
        ("events", "remove_targets", {"Rule": "alarm-sms", "Ids": ["send-sms"]}),
        ("events", "delete_rule", {"Name": "alarm-sms"}),
        ("scheduler", "delete_schedule", {"Name": "reminder"}),
        ("iam", "delete_role_policy", {"RoleName": "scheduler-to-send-queue", "PolicyName": "send"}),
        ("iam", "delete_role", {"RoleName": "scheduler-to-send-queue"}),
    ]
    for service, action, arguments in leftovers:
        with suppress(ClientError):
            getattr(cloud.client(service), action)(**arguments)


def seed(cloud: Cloud, page: str, folder: Path) -> None:
    """Prepare what a page's commands need: a secret and its file, a secret to restore, or a record to move."""
    if page == "docs/operations/rotation-after-a-leak.md":
        manager = cloud.client("secretsmanager")
        default = manager.get_secret_value(SecretId="twilio/default")["SecretString"]
        manager.create_secret(Name="twilio/marketing", SecretString=default)
        (folder / "connection.json").write_text(default)
    if page == "docs/operations/default-connection-missing.md":
        cloud.client("secretsmanager").delete_secret(SecretId="twilio/default", RecoveryWindowInDays=7)
    if page in {"docs/operations/redrive.md", "docs/operations/failed-queue.md"}:
        queue = cloud.outputs["FailedQueueUrl"]
        cloud.client("sqs").purge_queue(QueueUrl=queue)
        sms = {"to": "+15005550006", "message": "Hello", "connection": "default", "idempotency_key": uuid.uuid4().hex}
        cloud.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps(sms))


def like(shown: Any, real: Any) -> bool:
    """Return whether an answer has all that a page shows of it; null matches any value."""
    match shown, real:
        case dict(), dict():
            return all(name in real and like(value, real[name]) for name, value in shown.items())
        case [first, *_], [*_]:
            return all(like(first, value) for value in real)
        case _:
            return shown is None or real is None or type(shown) is type(real)


def first_json(text: str) -> Any:
    """Return the first JSON value of a text: a function's answer, after which the AWS CLI prints another object."""
    return json.JSONDecoder().raw_decode(text)[0]


def of_pages(*marks: str) -> pytest.MarkDecorator:
    """Run a test for each block that has one of these marks, with the reader of its page."""
    blocks = marked(*marks)
    return pytest.mark.parametrize(
        ("reader", "block"), [(block.page, block) for block in blocks], indirect=["reader"], ids=map(str, blocks)
    )


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("name", ["env", "stack.json"])
def test_only_the_owner_reads_the_keys(folder: Path, name: str) -> None:
    """Only the owner may read the files with the keys of both identities."""
    assert 0o600 == stat.S_IMODE((folder / name).stat().st_mode)


@of_pages("run")
def test_runs(block: Block, reader: Reader) -> None:
    """Every command of a page runs, and every call is answered with a JSON object."""
    printed = reader.printed(block)

    if re.search(r"^(api|aws lambda invoke) .*(/dev/stdout|\$ActionsApiUrl/)", block.text, re.MULTILINE):
        assert isinstance(first_json(printed), dict)


@of_pages("answer")
def test_answer(block: Block, reader: Reader) -> None:
    """The answer that a page shows matches the one that its command prints."""
    earlier = [other for other in BLOCKS[: BLOCKS.index(block)] if (other.page, other.mark) == (block.page, "run")]
    shown, real = json.loads(block.text), first_json(reader.printed(earlier[-1]))

    if block.argument == "exact":
        assert shown == real
    else:
        assert like(shown, real), real


MODELLED = {
    "docs/operations.md": ["sqs get-queue-attributes", "sqs start-message-move-task"],
    "docs/operations/buffer-dead-letter-queue.md": ["sqs get-queue-attributes", "sqs start-message-move-task"],
    "docs/operations/credentials-refused.md": ["secretsmanager put-secret-value"],
    "docs/operations/failed-queue.md": ["sqs delete-message"],
    "docs/operations/records-unhandled.md": ["sqs delete-message"],
    "docs/operations/rotate-connection-errors.md": ["secretsmanager rotate-secret"],
    "docs/operations/rotation-after-a-leak.md": ["cloudtrail lookup-events"],
    "docs/operations/secrets-malformed.md": [
        "secretsmanager put-secret-value",
        "secretsmanager update-secret-version-stage",
    ],
}
"""The commands that are not run: the emulator lacks the call, or the call would break the stack of other tests."""


def test_few_commands_are_held_against_models() -> None:
    """Only the listed commands are checked against models, and each of their blocks gives the reason."""
    found: dict[str, list[str]] = {}
    for block in marked("model"):
        assert block.argument
        found.setdefault(block.page, []).extend(re.findall(r"\baws ([a-z0-9-]+ [a-z-]+)", block.text))

    assert MODELLED == found


class _Nothing(BaseHTTPRequestHandler):
    """A service that answers an empty JSON object to every request that the AWS CLI lets through."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("block", marked("model"), ids=str)
def test_is_as_the_service_models_want_it(block: Block, tmp_path: Path) -> None:
    """The AWS CLI, which checks each command and its parameters against the service's model, accepts them."""
    (tmp_path / "connection.json").write_text("{}")
    names = ("SendQueueUrl", "FailedQueueUrl", "BufferDeadLetterQueueUrl", "BufferQueueArn", "ReceiptHandle")
    environment = dict.fromkeys((*names, "previous", "current"), "a" * 32)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Nothing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        command = f'{ROOT}/.venv-aws/bin/aws --endpoint-url http://127.0.0.1:{server.server_port} "$@"'
        done = subprocess.run(
            ["/bin/bash", "-c", f"aws() {{ {command}; }}\nset -eo pipefail\n{block.text}"],
            cwd=tmp_path,
            env=environment | keys | {"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        server.shutdown()

    assert (0, "") == (done.returncode, done.stderr)
