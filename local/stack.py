"""Start, redeploy and stop the local stack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local import FOLDER, LocalError, deploy, emulators, processes, runtime, seed, shell
from local.aws import REGION, Identity
from local.console import QUIET, Report

Stack = dict[str, Any]  # the content of stack.json


def up(
    folder: Path = FOLDER,
    *,
    parameters: Mapping[str, str] | None = None,
    functions_aws_url: str | None = None,
    report: Report = QUIET,
) -> Stack:
    """Start a stack, or update the one that runs; return the content of stack.json.

    `parameters` are the template's. `functions_aws_url` is the AWS endpoint of the functions instead of the emulator.
    If a step fails, this function stops the stack again, unless the stack was running before.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        runtime.redirect(folder, functions_aws_url)
        found = (folder / "stack.json").exists() and emulators.are_healthy(folder)
        try:
            if not found:
                with report.step("Start the emulators of AWS and Twilio") as step:
                    _end(folder)
                    emulators.start(folder)
                    step.facts.extend(emulators.NAMES)
            with report.step("Build with sam build") as step:
                for pattern in deploy.build(folder):
                    step.more(f"without {pattern}: {deploy.LEFT_OUT[pattern]}")
            emulators.wait(folder)
            defaults = {"TwilioApiUrl": emulators.url(folder, "emulate")}
            return _deploy(folder, defaults | dict(parameters or {}), report)
        except BaseException:
            if not found:
                _end(folder)
            raise


def redeploy(
    folder: Path = FOLDER, *, parameters: Mapping[str, str] | None = None, built: Path = deploy.BUILT
) -> Stack:
    """Deploy a build, from this or another folder, to a running stack; return the content of stack.json.

    Parameters that are not named keep their values; `WebhookBaseUrl` becomes the local API's address again.
    """
    with _locked(folder):
        read(folder)
        deploy.prepare(folder, built)
        return _deploy(folder, parameters or {}, QUIET)


def down(folder: Path = FOLDER) -> bool:
    """Stop a stack; return whether one was running."""
    if not folder.exists():
        return False
    with _locked(folder):
        return _end(folder)


def read(folder: Path = FOLDER) -> Stack:
    """Return the content of stack.json; raises LocalError if no stack runs."""
    try:
        stack: Stack = json.loads((folder / "stack.json").read_text())
    except FileNotFoundError:
        raise LocalError("No stack runs here: start one with 'make local'.") from None
    return stack


def _locked(folder: Path) -> Any:
    busy = f"Another command is at work on the stack in {folder}: wait until it ends, then try again."
    return processes.exclusive(folder / "stack.lock", busy=busy)


def _deploy(folder: Path, parameters: Mapping[str, str], report: Report) -> Stack:
    aws_url, twilio_url = emulators.url(folder, "ministack"), emulators.url(folder, "emulate")
    with report.step("Deploy with sam deploy") as step:
        outputs = deploy.deploy(folder, aws_url, parameters)
        step.facts.append(deploy.STACK_NAME)
    with report.step("Store connections, make a caller, set a number"):
        seed.create_connections(aws_url)
        caller = seed.create_caller(aws_url, outputs, _known_caller(folder))
        seed.point_number(twilio_url, outputs["WebhookUrl"])
    stack = {
        "aws_endpoint_url": aws_url,
        "region": REGION,
        "actions_api_url": outputs["ActionsApiUrl"],
        "webhook_url": outputs["WebhookUrl"],
        "stack_name": deploy.STACK_NAME,
        "connections": seed.CONNECTIONS,
        "caller": caller._asdict(),
        "twilio": {
            "url": twilio_url,
            "account_sid": seed.ACCOUNT_SID,
            "auth_token": seed.AUTH_TOKEN,
            "number": seed.NUMBER,
        },
        "outputs": outputs,
    }
    _write(folder / "stack.json", json.dumps(stack, indent=2) + "\n")
    _write(folder / "env", shell.environment(stack))
    return stack


def _write(path: Path, text: str) -> None:
    """Write a file atomically, and make it readable only for its owner."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def _known_caller(folder: Path) -> Identity | None:
    try:
        return Identity(**read(folder)["caller"])
    except LocalError:
        return None


def _end(folder: Path) -> bool:
    ran = emulators.stop(folder)
    for name in ("stack.json", "env"):
        (folder / name).unlink(missing_ok=True)
    return ran
