"""The candidates: the functions as they are built, and the baselines as `sam build` ships them and compiled."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bench import FOLDER, ROOT
from bench.account import ACCOUNT_SID, AUTH_TOKEN, NUMBER, SECRET_NAME
from local import processes
from local.aws import REGION, ROOT_USER

PYTHON = ROOT / ".venv-lambda" / "bin" / "python"
BASELINES = Path(__file__).parent / "baselines"
BUILT = ROOT / ".aws-sam" / "build"
LAYER = BUILT / "TwilioLayer"

_COPIES = FOLDER / "copies"
_BUILD_SECONDS = 600
_SUB = re.compile(r"\$\{([\w:]+)\}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A handler, the folders of its code, and its environment variables."""

    name: str
    handler: str
    path: tuple[Path, ...]
    environment: Mapping[str, str]

    def set(self, **variables: str) -> "Candidate":
        """Return the candidate with some variables changed."""
        return replace(self, environment={**self.environment, **variables})

    def with_bench_on_path(self) -> "Candidate":
        """Return the candidate with this package on its path, after its own code."""
        return replace(self, path=(*self.path, ROOT))

    def command_environment(self) -> dict[str, str]:
        """Return the environment variables of a process that runs the candidate."""
        return {**self.environment, "PYTHONPATH": os.pathsep.join(map(str, self.path))}


def build() -> None:
    """Build the functions and the baselines, unless they are up to date."""
    FOLDER.joinpath("logs").mkdir(parents=True, exist_ok=True)
    with processes.exclusive(ROOT / ".local" / "build.lock"):
        _run("make build", ["make", "build"])
    for baseline in sorted(BASELINES.iterdir()):
        if (baseline / "template.yaml").exists():
            _build_baseline(baseline)


def copy(authority: Path) -> None:
    """Copy the layer and the baselines, let the copies trust the local server, and compile some of the baselines."""
    shutil.rmtree(_COPIES, ignore_errors=True)
    shutil.copytree(LAYER, _COPIES / "layer")
    for baseline in ("official_sdk", "bare_requests", "standard_library"):
        shutil.copytree(_baseline_code(baseline), _COPIES / baseline)
    shutil.copytree(_COPIES / "official_sdk", _COPIES / "official_sdk_compiled")
    shutil.copytree(_COPIES / "bare_requests", _COPIES / "bare_requests_compiled")
    for bundle in _COPIES.glob("**/certifi/cacert.pem"):
        bundle.write_text(bundle.read_text() + authority.read_text())
    shutil.copy(_COPIES / "bare_requests" / "certifi" / "cacert.pem", _COPIES / "authorities.pem")
    for compiled in _COPIES.glob("*_compiled"):
        command = [PYTHON, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", compiled]
        _run("compileall", command)


def functions(aws_url: str, twilio_url: str) -> dict[str, Candidate]:
    """Return the functions of the built template, by the names of their files."""
    template = yaml.safe_load((BUILT / "template.yaml").read_text())
    values = _Values(template, aws_url)
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    found = {}
    for resource in template["Resources"].values():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        properties = resource["Properties"]
        own = properties.get("Environment", {}).get("Variables", {})
        variables = {name: values.of(value) for name, value in (shared | own).items()}
        variables |= {"TWILIO_API_URL": twilio_url, "AWS_LAMBDA_LOG_FORMAT": "JSON"}
        name = properties["Handler"].partition(".")[0]
        path = (BUILT / properties["CodeUri"], _COPIES / "layer" / "python")
        found[name] = Candidate(name, properties["Handler"], path, lambda_environment(aws_url) | variables)
    return found


def baselines(aws_url: str, twilio_url: str) -> dict[str, Candidate]:
    """Return the baselines, by their names."""
    account = {
        "TWILIO_API_URL": twilio_url,
        "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        "TWILIO_FROM": NUMBER,
    }
    sdk = {"TWILIO_API_URL": twilio_url, "TWILIO_SECRET": SECRET_NAME, "POWERTOOLS_SERVICE_NAME": "messages"}
    every = {
        "baseline as shipped": ("app.handler", "official_sdk", sdk),
        "baseline compiled": ("app.handler", "official_sdk_compiled", sdk),
        "baseline, batch": ("batch.handler", "official_sdk_compiled", sdk),
        "baseline, list": ("listing.handler", "official_sdk_compiled", sdk),
        "bare requests": ("app.handler", "bare_requests_compiled", account),
        "floor": ("app.handler", "standard_library", account),
    }
    return {
        name: Candidate(name, handler, (_COPIES / folder,), lambda_environment(aws_url) | variables)
        for name, (handler, folder, variables) in every.items()
    }


def lambda_environment(aws_url: str) -> dict[str, str]:
    """Return the environment variables that Lambda sets."""
    return {
        "AWS_ACCESS_KEY_ID": ROOT_USER.access_key_id,
        "AWS_SECRET_ACCESS_KEY": ROOT_USER.secret_access_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": aws_url,
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_NAME": "function",
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_REGION": REGION,
        "HOME": "/nonexistent",  # no ~/.aws and no ~/.netrc
        "LANG": "en_US.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",  # Lambda's file system is read-only
        "SSL_CERT_FILE": str(_COPIES / "authorities.pem"),  # as many authorities as certifi has
        "TZ": ":UTC",
    }


def shipped_baseline() -> Path:
    """Return the folder of the baseline that `sam build` created."""
    return _baseline_code("official_sdk")


class _Values:
    """The values of a template's expressions with the parameters' defaults."""

    def __init__(self, template: Mapping[str, Any], aws_url: str) -> None:
        self._parameters = template["Parameters"]
        self._resources = template["Resources"]
        self._aws_url = aws_url

    def of(self, value: Any) -> str:
        match value:
            case {"Ref": name}:
                text = self._named(name)
            case {"Fn::If": [_, _, otherwise]}:  # a condition holds if a parameter is given, and none is
                text = self.of(otherwise)
            case {"Fn::Sub": pattern}:
                text = _SUB.sub(lambda match: self._named(match[1]), pattern)
            case {"Fn::Join": [separator, parts]}:
                text = str(separator).join(map(self.of, parts))
            case {"Fn::GetAtt": [name, *_]} | {"Fn::GetAtt": name}:
                text = str(name)
            case _:
                text = str(value)
        return text

    def _named(self, name: str) -> str:
        if name in self._parameters:
            return str(self._parameters[name].get("Default", ""))
        if self._resources.get(name, {}).get("Type") == "AWS::SQS::Queue":
            return f"{self._aws_url}/000000000000/{name}"
        return {"AWS::Region": REGION, "AWS::URLSuffix": "amazonaws.com", "AWS::StackName": "twilio-connector"}.get(
            name, name
        )


def _build_baseline(baseline: Path) -> None:
    """Run `sam build` for a baseline that has changed since its last build."""
    content = hashlib.sha256()
    for file in sorted(path for path in baseline.iterdir() if path.is_file()):
        content.update(file.name.encode() + b"\0" + file.read_bytes())
    built = FOLDER / "baselines" / baseline.name
    stamp = built.with_suffix(".built")
    if stamp.exists() and stamp.read_text() == content.hexdigest():
        return
    machine = "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"
    options = ["--template-file", baseline / "template.yaml", "--build-dir", built]
    options += ["--parameter-overrides", f"Architecture={machine}"]
    _run(f"sam build of {baseline.name}", [ROOT / ".venv-sam" / "bin" / "sam", "build", *options])
    stamp.write_text(content.hexdigest())


def _baseline_code(baseline: str) -> Path:
    """Return the folder of a baseline's only function."""
    template = FOLDER / "baselines" / baseline / "template.yaml"
    [function] = yaml.safe_load(template.read_text())["Resources"].values()
    return template.parent / str(function["Properties"]["CodeUri"])


def _run(what: str, command: list[object]) -> None:
    path = f"{sys.base_prefix}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    variables = {**os.environ, "PATH": path, "SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": REGION}
    variables["__SAM_CLI_APP_DIR"] = str(ROOT / ".local" / "sam")
    log = FOLDER / "logs" / f"{what.replace(' ', '_')}.log"
    processes.run(processes.Job(what, command, variables, ROOT), log, _BUILD_SECONDS)


def start_worker(candidate: Candidate, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that runs one job as often as requested."""
    command = [str(PYTHON), "-m", "bench.worker", *arguments]
    variables = candidate.with_bench_on_path().command_environment()
    return subprocess.Popen(
        command, env=variables, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
