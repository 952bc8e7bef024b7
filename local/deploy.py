"""Build the template and deploy it to the AWS emulator, with `sam build` and `sam deploy`."""

import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local import ROOT, LocalError, processes
from local.aws import REGION, ROOT_USER, client

STACK_NAME = "twilio-connector-local"
BUILT = ROOT / ".aws-sam" / "build"

_SAM = ROOT / ".venv-sam" / "bin" / "sam"
_SECONDS = 300
_RUNTIME = re.compile(r"^( *Runtime: )python3\.13$", re.MULTILINE)


def build(folder: Path) -> None:
    """Run `sam build`, and prepare what it made for the emulator."""
    with processes.exclusive(ROOT / ".local" / "build.lock"):
        options = ["--cached", "--parallel", "--parameter-overrides", *_overrides({})]
        job = processes.Job("sam build", [_SAM, "build", *options], _environment(), ROOT)
        processes.run(job, processes.log_of(folder, "build"), _SECONDS)
        prepare(folder, BUILT)


def prepare(folder: Path, built: Path) -> None:
    """Copy what was built, and put the functions on AWS's own runtime client.

    The emulator's own Python runtime loses the classes of errors.
    """
    prepared = folder / "build"
    shutil.rmtree(prepared, ignore_errors=True)
    shutil.copytree(built, prepared)
    template = prepared / "template.yaml"
    text, count = _RUNTIME.subn(r"\1provided.al2023", template.read_text())
    if not count:
        raise LocalError(f"{template} has no function with 'Runtime: python3.13': was the template changed?")
    template.write_text(text)
    python = ROOT / ".venv-lambda" / "bin" / "python"
    if not python.exists():
        raise LocalError(f"{python} is missing: 'make local' installs it.")
    start = [python, "-I", ROOT / "local" / "runtime.py", folder]
    for functions in {module.parent for module in prepared.glob("*/*.py")}:
        bootstrap = functions / "bootstrap"
        # The same for every deployment, so that it changes no function's hash.
        bootstrap.write_text(f"#!/bin/sh\nexec {shlex.join(map(str, start))}\n")
        bootstrap.chmod(0o755)


def deploy(folder: Path, endpoint_url: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Run `sam deploy` and create the APIs' routes; return the stack's outputs.

    Parameters that are not named keep the values they have.
    """
    environment = _environment() | {
        "AWS_ACCESS_KEY_ID": ROOT_USER.access_key_id,
        "AWS_SECRET_ACCESS_KEY": ROOT_USER.secret_access_key,
        "AWS_ENDPOINT_URL": endpoint_url,
        "SAM_CLI_POLL_DELAY": "0.2",
    }
    options = ["--template-file", "template.yaml", "--stack-name", STACK_NAME, "--region", REGION]
    options += ["--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset"]
    options += ["--no-fail-on-empty-changeset", "--no-progressbar"]
    options += ["--parameter-overrides", *_overrides(parameters)]
    job = processes.Job("sam deploy", [_SAM, "deploy", *options], environment, folder / "build")
    processes.run(job, processes.log_of(folder, "deploy"), _SECONDS)
    cloudformation = client("cloudformation", endpoint_url)
    outputs = _outputs(cloudformation)
    apis = Apis(cloudformation, endpoint_url)
    apis.create_routes()
    if "WebhookBaseUrl" not in parameters and outputs["WebhookUrl"] != f"{apis.url('WebhookApi')}/webhook":
        # An address that is known only now, as a custom domain's is.
        _set_parameter(cloudformation, "WebhookBaseUrl", apis.url("WebhookApi"))
        outputs = _outputs(cloudformation)
    _mend_event_sources(endpoint_url)
    return outputs | {"ActionsApiUrl": apis.url("ActionsApi")}


class Apis:
    """The template's HTTP APIs, whose OpenAPI body the emulator does not import."""

    def __init__(self, cloudformation: Any, endpoint_url: str) -> None:
        resources = cloudformation.describe_stack_resources(StackName=STACK_NAME)["StackResources"]
        self._ids = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}
        processed = cloudformation.get_template(StackName=STACK_NAME, TemplateStage="Processed")
        self._resources = processed["TemplateBody"]["Resources"]
        self._gateway = client("apigatewayv2", endpoint_url)
        self._endpoint_url = endpoint_url

    def url(self, name: str) -> str:
        """Return an API's address that needs no Host header."""
        return f"{self._endpoint_url}/_aws/execute-api/{self._ids[name]}"

    def create_routes(self) -> None:
        """Make each API's routes those of its body."""
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
            raise LocalError(f"The local stack cannot read the integration {uri}: mend local/deploy.py.")
        arn: str = self._ids[logical[1]]
        return arn


def _mend_event_sources(endpoint_url: str) -> None:
    """Make numbers of the limits that the emulator took from parameters as text, and then stumbles over."""
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


def _outputs(cloudformation: Any) -> dict[str, str]:
    outputs = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def _set_parameter(cloudformation: Any, name: str, value: str) -> None:
    """Change one parameter of the deployed stack."""
    stack = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    others = [parameter["ParameterKey"] for parameter in stack["Parameters"]]
    cloudformation.update_stack(
        StackName=STACK_NAME,
        UsePreviousTemplate=True,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value},
            *({"ParameterKey": other, "UsePreviousValue": True} for other in others if other != name),
        ],
    )
    waiter = cloudformation.get_waiter("stack_update_complete")
    waiter.wait(StackName=STACK_NAME, WaiterConfig={"Delay": 0.2, "MaxAttempts": 300})


def _overrides(parameters: Mapping[str, str]) -> list[str]:
    given = {"Architecture": _architecture()} | dict(parameters)
    # In quotes, or it would take no value that is empty or has a space.
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]


def _architecture() -> str:
    """Return this machine's processor, as Lambda calls it."""
    names = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
    try:
        return names[platform.machine().lower()]
    except KeyError:
        raise LocalError(f"Lambda has no processor like this machine's, {platform.machine()}.") from None


def _environment() -> dict[str, str]:
    """Return the environment of `sam`: this Python, and no account of the developer's."""
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
