"""The built layer with the oldest and the newest boto3 that the runtime may have.

Lambda puts its own boto3 in the runtime, and updates it. The layer signs requests with it, and has none of its own.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.cloudformation import ROOT
from tests.integration.cloud import Cloud

FUNCTIONS = sorted(path.stem for path in (ROOT / "functions").glob("*.py"))
ENVIRONMENTS = ("oldest", "lambda")
SEND = "import sys; from twilio_connector.aws import queue; queue.send_message(sys.argv[1], sys.argv[2])"
VERSIONS = "import boto3, botocore, sys; print(boto3.__version__, botocore.__version__)"


@pytest.fixture(params=ENVIRONMENTS)
def python(request: pytest.FixtureRequest) -> str:
    """Return the name of an environment with one version of boto3."""
    return str(request.param)


@pytest.fixture
def served(cloud: Cloud) -> Iterator[str]:
    """Serve the caller's keys over HTTP, as Lambda does under SnapStart, and give the URL."""
    caller = cloud.info["caller"]
    keys = {
        "AccessKeyId": caller["access_key_id"],
        "SecretAccessKey": caller["secret_access_key"],
        "Token": "",
        "Expiration": "2099-01-01T00:00:00Z",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(keys if self.headers["Authorization"] == "token" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def run(layer: Path, python: str, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code with the functions and the layer on its path, in an environment with a version of boto3."""
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "functions"), str(layer)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_REGION": "us-east-1",
        "URL_SUFFIX": "amazonaws.com",
    }
    command = [str(ROOT / f".venv-{python}" / "bin" / "python"), "-c", code, *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False)


def keys(cloud: Cloud) -> dict[str, str]:
    """Return the environment variables with the caller's keys and the emulator's endpoint."""
    caller = cloud.info["caller"]
    return {
        "AWS_ENDPOINT_URL": cloud.info["aws_endpoint_url"],
        "AWS_ACCESS_KEY_ID": caller["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": caller["secret_access_key"],
    }


def arguments(cloud: Cloud) -> tuple[str, str]:
    """Return the URL of the send queue, to which a caller may write, and a message for it."""
    return cloud.outputs["SendQueueUrl"], json.dumps({"to": "+15005550006", "message": uuid.uuid4().hex})


def test_environments_are_far_apart(layer: Path) -> None:
    """The oldest environment has boto3 1.35.0, and the newest one has a botocore later than 1.40."""
    found = {name: run(layer, name, VERSIONS).stdout.split() for name in ENVIRONMENTS}

    assert ["1.35.0", "1.35.0"] == found["oldest"]
    assert [1, 40] < [int(part) for part in found["lambda"][1].split(".")[:2]]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_imported(layer: Path, python: str, function: str) -> None:
    """Each function can be imported on demand and under SnapStart, which also imports the code that signs requests."""
    for kind in ("on-demand", "snap-start"):
        done = run(layer, python, f"import {function}", AWS_LAMBDA_INITIALIZATION_TYPE=kind)

        assert (0, "") == (done.returncode, done.stderr)


def test_requests_are_signed(cloud: Cloud, layer: Path, python: str) -> None:
    """The emulator, which checks signatures, accepts a signed request, and refuses one that another secret signed."""
    good = run(layer, python, SEND, *arguments(cloud), **keys(cloud))
    bad = run(layer, python, SEND, *arguments(cloud), **keys(cloud) | {"AWS_SECRET_ACCESS_KEY": "another"})

    assert (0, "") == (good.returncode, good.stderr)
    assert (1, True) == (bad.returncode, "InvalidSignature" in bad.stderr or "SignatureDoesNotMatch" in bad.stderr)


def test_keys_are_served(cloud: Cloud, layer: Path, python: str, served: str) -> None:
    """Under SnapStart, requests are signed with the keys that Lambda serves over HTTP."""
    variables = {
        "AWS_ENDPOINT_URL": cloud.info["aws_endpoint_url"],
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": served,
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "token",
    }
    done = run(layer, python, SEND, *arguments(cloud), **variables)

    assert (0, "") == (done.returncode, done.stderr)
