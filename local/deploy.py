"""Build the template and deploy it to the AWS emulator, with `sam build` and `sam deploy`."""

import json
import os
import platform
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from local import ROOT, LocalError, deployer, emulators, processes
from local.aws import REGION, client

STACK_NAME = "twilio-connector-local"
BUILT = ROOT / ".aws-sam" / "build"

_SAM = ROOT / ".venv-sam" / "bin" / "sam"
_SECONDS = 300
_RUNTIME = "python3.13"
_LIMITS = tomllib.loads(Path(__file__).with_name("limits.toml").read_text())
LEFT_OUT: dict[str, str] = _LIMITS["left_out"]
"""The patterns of the template's parts that are removed for the emulator, with reasons."""
REFUSED: dict[str, str] = _LIMITS["refused"]
"""The parameters that can be changed only on AWS, with reasons."""


def build(folder: Path) -> list[str]:
    """Run `sam build`, and prepare its output for the emulator; return the patterns of the removed parts."""
    options = ["--cached", "--parallel", "--parameter-overrides", *_overrides({})]
    job = processes.Job("sam build", [_SAM, "build", *options], _environment(), ROOT)
    with building():
        processes.run(job, processes.log_path(folder, "build"), _SECONDS)
    return prepare(folder, BUILT)


def building() -> AbstractContextManager[None]:
    """Lock the build folder, because `sam build` replaces it and another stack may be copying it."""
    return processes.exclusive(ROOT / ".local" / "build.lock")


def copy(built: Path, folder: Path) -> None:
    """Replace a folder with a copy of the build folder."""
    with building():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(built, folder)


def prepare(folder: Path, built: Path, left_out: Collection[str] = LEFT_OUT.keys()) -> list[str]:
    """Copy the build without the parts that the emulator refuses, and make its functions use AWS's runtime client.

    The emulator's own Python runtime loses the classes of errors. The output `ActionsApiUrl` becomes the API's address
    on the emulator. Returns the patterns of the removed parts.
    """
    prepared = folder / "build"
    copy(built, prepared)
    template = prepared / "template.yaml"
    content = yaml.safe_load(template.read_text())
    found = list(leave_out(content["Resources"], left_out))
    defaults = content["Globals"]["Function"]
    if defaults["Runtime"] != _RUNTIME:
        raise LocalError(f"{template} has no 'Runtime: {_RUNTIME}' for all functions: was the template changed?")
    defaults["Runtime"] = "provided.al2023"
    address = f"{emulators.url(folder, 'ministack')}/_aws/execute-api/${{ActionsApi}}"
    content["Outputs"]["ActionsApiUrl"]["Value"] = {"Fn::Sub": address}
    template.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    python = ROOT / ".venv-lambda" / "bin" / "python"
    if not python.exists():
        raise LocalError(f"{python} is missing: 'make local' installs it.")
    start = [python, "-I", ROOT / "local" / "runtime.py", folder]
    for functions in {module.parent for module in prepared.glob("*/*.py")}:
        bootstrap = functions / "bootstrap"
        # The text is the same for every deployment, so that the functions' hashes do not change.
        bootstrap.write_text(f"#!/bin/sh\nexec {shlex.join(map(str, start))}\n")
        bootstrap.chmod(0o755)
    return found


def leave_out(resources: dict[str, Any], patterns: Collection[str]) -> Iterator[str]:
    """Remove the parts of the template whose places match a pattern; yield the patterns that matched.

    A place is `<type>/<name>/<key>/<key>...`. An item of a list has its number, and a policy's statement its Sid.
    """
    found = set()
    for name, resource in list(resources.items()):
        place = f"{resource['Type']}/{name}"
        matched = {pattern for pattern in patterns if fnmatchcase(place, pattern)}
        if matched:
            del resources[name]
        found |= matched or _leave_out(resource, place, patterns)
    yield from sorted(found)


def _leave_out(tree: Any, place: str, patterns: Collection[str]) -> set[str]:
    found: set[str] = set()
    for key, value in reversed(list(tree.items() if isinstance(tree, dict) else enumerate(tree))):
        inner = f"{place}/{value.get('Sid', key) if isinstance(value, dict) else key}"
        matched = {pattern for pattern in patterns if fnmatchcase(inner, pattern)}
        if matched:
            del tree[key]
        elif isinstance(value, dict | list):
            matched = _leave_out(value, inner, patterns)
            if matched and not value:
                del tree[key]  # a condition's operator without a key is not valid
        found |= matched
    return found


def deploy(
    folder: Path, endpoint_url: str, parameters: Mapping[str, str], stack_name: str = STACK_NAME
) -> dict[str, str]:
    """Run `sam deploy` and create the APIs' routes; return the stack's outputs.

    Parameters that are not named keep their values.
    """
    options = ["--template-file", "template.yaml", "--region", REGION]
    options += ["--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset"]
    options += ["--no-fail-on-empty-changeset", "--no-progressbar"]
    options += ["--parameter-overrides", *_overrides(parameters)]
    sam(folder, endpoint_url, stack_name, "deploy", *options)
    # Root does the remaining steps, which the emulator does not do.
    cloudformation = client("cloudformation", endpoint_url)
    outputs = _outputs(cloudformation, stack_name)
    apis = Apis(cloudformation, endpoint_url, stack_name)
    apis.create_routes()
    if "WebhookBaseUrl" not in parameters and outputs["WebhookUrl"] != f"{apis.url('WebhookApi')}/webhook":
        # The address is known only now, as that of a custom domain is.
        set_parameters(cloudformation, {"WebhookBaseUrl": apis.url("WebhookApi")}, stack_name)
        outputs = _outputs(cloudformation, stack_name)
    _fix_event_sources(endpoint_url)
    return outputs


def sam(
    folder: Path,
    endpoint_url: str,
    stack_name: str,
    command: str,
    *options: str,
    policy: dict[str, Any] | None = None,
) -> None:
    """Run a SAM command on a stack as the deployer; raises LocalError if it fails.

    `policy` replaces the deployer's policy.
    """
    environment = _environment() | deployer.credentials(endpoint_url, stack_name, policy)
    environment |= {"AWS_ENDPOINT_URL": endpoint_url, "SAM_CLI_POLL_DELAY": "0.2"}
    line = [_SAM, command, "--stack-name", stack_name, *options]
    job = processes.Job(f"sam {command}", line, environment, folder / "build")
    processes.run(job, processes.log_path(folder, command), _SECONDS)


class Apis:
    """The template's HTTP APIs, whose OpenAPI body the emulator does not import."""

    def __init__(self, cloudformation: Any, endpoint_url: str, stack_name: str) -> None:
        resources = cloudformation.describe_stack_resources(StackName=stack_name)["StackResources"]
        self._ids = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}
        processed = cloudformation.get_template(StackName=stack_name, TemplateStage="Processed")
        self._resources = processed["TemplateBody"]["Resources"]
        self._gateway = client("apigatewayv2", endpoint_url)
        self._endpoint_url = endpoint_url

    def url(self, name: str) -> str:
        """Return an address of an API that works without a special Host header."""
        return f"{self._endpoint_url}/_aws/execute-api/{self._ids[name]}"

    def create_routes(self) -> None:
        """Create the routes of each API's OpenAPI body, and delete all other routes."""
        for name, resource in self._resources.items():
            if resource["Type"] == "AWS::ApiGatewayV2::Api":
                self._create_routes(self._ids[name], resource["Properties"]["Body"])

    def _create_routes(self, api: str, body: Any) -> None:
        routes = self._gateway.get_routes(ApiId=api)["Items"]
        present = {route["RouteKey"]: route["RouteId"] for route in routes}
        for path, methods in body["paths"].items():
            for method, operation in methods.items():
                key = f"{method.upper()} {path}"
                if present.pop(key, None):
                    continue
                integration = operation["x-amazon-apigateway-integration"]
                target = self._gateway.create_integration(
                    ApiId=api,
                    IntegrationType=integration["type"].upper(),
                    IntegrationMethod=integration["httpMethod"],
                    IntegrationUri=self._alias(integration["uri"]["Fn::Sub"]),
                    PayloadFormatVersion=integration["payloadFormatVersion"],
                )["IntegrationId"]
                schemes = [name for scheme in operation.get("security", []) for name in scheme]
                self._gateway.create_route(
                    ApiId=api,
                    RouteKey=key,
                    Target=f"integrations/{target}",
                    AuthorizationType="AWS_IAM" if "AWS_IAM" in schemes else "NONE",
                )
        for route in present.values():
            self._gateway.delete_route(ApiId=api, RouteId=route)

    def _alias(self, uri: str) -> str:
        """Return the ARN of the function's alias that an integration's URI names."""
        logical = re.search(r"functions/\$\{(\w+)\}/invocations", uri)
        if logical is None:
            raise LocalError(f"The local stack cannot read the integration {uri}: fix local/deploy.py.")
        arn: str = self._ids[logical[1]]
        return arn


def _fix_event_sources(endpoint_url: str) -> None:
    """Convert limits to numbers, because the emulator stores parameters as text and then fails on them."""
    functions = client("lambda", endpoint_url)
    for mapping in functions.list_event_source_mappings()["EventSourceMappings"]:
        if scaling := mapping.get("ScalingConfig"):
            limit = int(scaling["MaximumConcurrency"])
            functions.update_event_source_mapping(
                UUID=mapping["UUID"],
                BatchSize=int(mapping["BatchSize"]),
                MaximumBatchingWindowInSeconds=int(mapping["MaximumBatchingWindowInSeconds"]),
                ScalingConfig={"MaximumConcurrency": limit},
            )


def _outputs(cloudformation: Any, stack_name: str) -> dict[str, str]:
    outputs = cloudformation.describe_stacks(StackName=stack_name)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def set_parameters(cloudformation: Any, values: Mapping[str, str], stack_name: str) -> None:
    """Change only parameters of a deployed stack; raises WaiterError if the deployment fails."""
    stack = cloudformation.describe_stacks(StackName=stack_name)["Stacks"][0]
    others = [parameter["ParameterKey"] for parameter in stack["Parameters"]]
    cloudformation.update_stack(
        StackName=stack_name,
        UsePreviousTemplate=True,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[
            *({"ParameterKey": name, "ParameterValue": value} for name, value in values.items()),
            *({"ParameterKey": other, "UsePreviousValue": True} for other in others if other not in values),
        ],
    )
    waiter = cloudformation.get_waiter("stack_update_complete")
    waiter.wait(StackName=stack_name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 300})


def _overrides(parameters: Mapping[str, str]) -> list[str]:
    given = {"Architecture": architecture()} | dict(parameters)
    # Without quotes, SAM would not accept a value that is empty or has a space.
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]


def architecture() -> str:
    """Return Lambda's name of this machine's processor architecture."""
    names = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
    try:
        return names[platform.machine().lower()]
    except KeyError:
        raise LocalError(f"Lambda has no processor like this machine's, {platform.machine()}.") from None


def _environment() -> dict[str, str]:
    """Return the environment for `sam`, with this Python and without the developer's AWS accounts."""
    foreign = ("AWS_", "PYTHON", "SAM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "PATH": f"{sys.base_prefix}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "SAM_CLI_TELEMETRY": "0",
        "__SAM_CLI_APP_DIR": str(ROOT / ".local" / "sam"),
    }
