"""The environment of all candidates: servers on loopback, certificates, and stored items and secrets."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trustme
import yaml

from bench import FOLDER, ROOT, bundle
from bench.account import SECRET, SECRET_NAME
from bench.bundle import Candidate
from local import loopback, processes
from local.aws import REGION, client

_BUSY = "Another benchmark runs here: wait until it ends, then try again."
_MINISTACK = "ministack"


@dataclass(frozen=True, slots=True)
class Environment:
    """The candidates and servers. `functions` and `baselines` call AWS at `aws_url`, `cold_*` call ministack."""

    aws_url: str
    functions: Mapping[str, Candidate]
    baselines: Mapping[str, Candidate]
    cold_functions: Mapping[str, Candidate]
    cold_baselines: Mapping[str, Candidate]

    def latencies(self, twilio: float = 0, aws: float = 0) -> None:
        """Let the servers wait for this many seconds before each answer, and reset their counts."""
        loopback.request("GET", f"{self.aws_url}/bench?twilio={twilio}&aws={aws}")

    def load(self) -> Any:
        """Return the servers' counts since the last reset: of requests, and of requests at the same time."""
        return loopback.request("GET", f"{self.aws_url}/bench").json()


@contextmanager
def open_environment() -> Iterator[Environment]:
    """Build the candidates, and run the servers for the duration of a `with` block."""
    with processes.exclusive(FOLDER / "lock", busy=_BUSY):
        bundle.build()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(FOLDER / "ca.pem")
        certificate = FOLDER / "server.pem"
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
        bundle.copy(FOLDER / "ca.pem")
        with _server(str(certificate)) as ports, _ministack() as ministack:
            aws_url, twilio_url = f"http://127.0.0.1:{ports['aws']}", f"https://127.0.0.1:{ports['twilio']}"
            yield Environment(
                aws_url,
                bundle.functions(aws_url, twilio_url),
                bundle.baselines(aws_url, twilio_url),
                bundle.functions(ministack, twilio_url),
                bundle.baselines(ministack, twilio_url),
            )


@contextmanager
def _server(certificate: str) -> Iterator[dict[str, int]]:
    command = [sys.executable, "-m", "bench.server", certificate]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline()) if process.stdout else {}
        finally:
            process.kill()


@contextmanager
def _ministack() -> Iterator[str]:
    """Start AWS's emulator, with the secret, tables, queues and the bus."""
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"
    temporary = FOLDER / "tmp"
    temporary.mkdir(exist_ok=True)
    variables = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "HOME": str(temporary),
        "IOT_MTLS_ENABLED": "0",  # no second port
        "LANG": "C.UTF-8",
        "MINISTACK_REGION": REGION,
        "PATH": os.defpath,
        "STATE_DIR": str(temporary),
        "TMPDIR": str(temporary),
    }
    program = ROOT / ".venv-ministack" / "bin" / "ministack"
    processes.start(FOLDER, processes.Job(_MINISTACK, [program], variables, FOLDER))
    try:
        processes.wait_until_answers(FOLDER, _MINISTACK, f"{url}/_ministack/health")
        _seed(url)
        yield url
    finally:
        processes.stop(FOLDER, _MINISTACK)


def _seed(url: str) -> None:
    client("secretsmanager", url).create_secret(Name=SECRET_NAME, SecretString=json.dumps(SECRET))
    for name, resource in yaml.safe_load((bundle.BUILT / "template.yaml").read_text())["Resources"].items():
        properties = resource.get("Properties", {})
        match resource["Type"]:
            case "AWS::DynamoDB::Table":
                known = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
                table = {key: properties[key] for key in known if key in properties}
                client("dynamodb", url).create_table(TableName=name, **table)
            case "AWS::SQS::Queue":
                client("sqs", url).create_queue(QueueName=name)
            case "AWS::Events::EventBus":
                client("events", url).create_event_bus(Name=name)
