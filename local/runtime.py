"""Start a function as Lambda starts it: in Lambda's environment, with the layers of exactly its version.

The emulator runs this as the `bootstrap` beside the handlers, and does not mount layers. The interpreter is from an
environment that has only the packages of the managed runtime.
"""

import hashlib
import http.client
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

# The variables that Lambda sets for a function; here, the emulator sets them. No other variable is passed on.
_PASSED_THROUGH = [
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "LAMBDA_TASK_ROOT",
    "_HANDLER",
]
_REDIRECTION = "functions-aws-url"
_SECONDS = 10


def redirect(folder: Path, url: str | None) -> None:
    """Set the AWS endpoint for the functions of the stack in a folder; None means the emulator itself."""
    file = folder / _REDIRECTION
    if url:
        file.write_text(url)
    else:
        file.unlink(missing_ok=True)


def main(folder: Path) -> None:
    """Replace this process with AWS's runtime client; `folder` is the stack's, in which layers are unpacked."""
    given = {name: os.environ[name] for name in _PASSED_THROUGH if name in os.environ}
    configuration = _configuration(given)
    unpacked = [_unpacked(layer["Arn"], given, folder / "layers") for layer in configuration.get("Layers", [])]
    # In /opt a later layer's files replace an earlier one's.
    path = [given["LAMBDA_TASK_ROOT"], *(str(layer / "python") for layer in reversed(unpacked))]
    logging = configuration["LoggingConfig"]
    environment = configuration.get("Environment", {}).get("Variables", {}) | given
    if (redirection := folder / _REDIRECTION).exists():
        environment["AWS_ENDPOINT_URL"] = redirection.read_text()
    if "ApplicationLogLevel" in logging:
        environment["AWS_LAMBDA_LOG_LEVEL"] = logging["ApplicationLogLevel"]
    environment |= {
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_FORMAT": logging["LogFormat"],
        "AWS_LAMBDA_LOG_GROUP_NAME": logging["LogGroup"],
        "HOME": "/nonexistent",  # no ~/.aws and no ~/.netrc, as in Lambda
        "LANG": "en_US.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",  # Lambda's file system is read-only
        "PYTHONPATH": os.pathsep.join(path),
        "TZ": ":UTC",
    }
    # Do not use -I, which would ignore PYTHONPATH.
    command = [sys.executable, "-m", "awslambdaric", given["_HANDLER"]]
    os.execve(sys.executable, command, environment)  # noqa: S606 the runtime client replaces this process


def _configuration(given: dict[str, str]) -> Any:
    """Return the configuration of the function's version."""
    name, version = given["AWS_LAMBDA_FUNCTION_NAME"], given["AWS_LAMBDA_FUNCTION_VERSION"]
    path = f"/2015-03-31/functions/{quote(name)}/configuration?Qualifier={quote(version)}"
    return json.loads(_get(given, path))


def _unpacked(arn: str, given: dict[str, str], layers: Path) -> Path:
    """Return the folder of a layer's version, and unpack the layer on first use."""
    *_, name, version = arn.split(":")
    found = json.loads(_get(given, f"/2018-10-31/layers/{quote(name)}/versions/{version}"))["Content"]
    folder = layers / hashlib.sha256(f"{arn} {found['CodeSha256']}".encode()).hexdigest()[:32]
    if folder.exists():
        return folder
    location = urlsplit(found["Location"])
    layers.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=layers))
    with zipfile.ZipFile(io.BytesIO(_get(given, location.path))) as content:
        content.extractall(new)
    try:
        new.rename(folder)
    except OSError:  # another process has unpacked it in the meantime
        shutil.rmtree(new)
    return folder


def _get(given: dict[str, str], path: str) -> bytes:
    """Return the emulator's answer to a request as root, whose signature it does not check."""
    credential = f"Credential=test/20200101/{given['AWS_REGION']}/lambda/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0"}
    connection = http.client.HTTPConnection(urlsplit(given["AWS_ENDPOINT_URL"]).netloc, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise SystemExit(f"The emulator answered {answer.status} to {path}.")
    return body


if __name__ == "__main__":
    main(Path(sys.argv[1]))
