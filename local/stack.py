"""Start the stack on this machine, deploy to it again, end it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local import FOLDER, LocalError, deploy, emulators, furnish, processes, runtime
from local.aws import REGION, Identity
from local.console import QUIET, Report

Stack = dict[str, Any]  # what stack.json says


def up(
    folder: Path = FOLDER,
    *,
    parameters: Mapping[str, str] | None = None,
    functions_aws_url: str | None = None,
    report: Report = QUIET,
) -> Stack:
    """Start a stack, or bring the one that runs up to date; return what stack.json says.

    `parameters` are the template's. `functions_aws_url` is what the functions take for AWS instead of the emulator.
    What this started is ended again where something fails.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        runtime.redirect(folder, functions_aws_url)
        found = (folder / "stack.json").exists() and emulators.are_well(folder)
        try:
            if not found:
                with report.step("Start the emulators of AWS and Twilio") as facts:
                    _end(folder)
                    emulators.start(folder)
                    facts.extend(emulators.NAMES)
            with report.step("Build with sam build"):
                deploy.build(folder)
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
    """Deploy what was built, here or elsewhere, to a stack that runs; return what stack.json says.

    Parameters that are not named keep their values; `WebhookBaseUrl` becomes the local API's address again.
    """
    with _alone(folder):
        read(folder)
        deploy.prepare(folder, built)
        return _deploy(folder, parameters or {}, QUIET)


def restart_twilio(folder: Path = FOLDER) -> None:
    """Start Twilio's emulator anew on its port, with no messages and a number that calls the webhook."""
    with _alone(folder):
        stack = read(folder)
        emulators.restart_emulate(folder)
        furnish.point_number(stack["twilio"]["url"], stack["webhook_url"])


def down(folder: Path = FOLDER) -> bool:
    """End a stack; tell whether one ran."""
    if not folder.exists():
        return False
    with _alone(folder):
        return _end(folder)


def read(folder: Path = FOLDER) -> Stack:
    """Return what stack.json says."""
    try:
        stack: Stack = json.loads((folder / "stack.json").read_text())
    except FileNotFoundError:
        raise LocalError("No stack runs here: start one with 'make local'.") from None
    return stack


def _alone(folder: Path) -> Any:
    busy = f"Another command is at work on the stack in {folder}: wait until it ends, then try again."
    return processes.exclusive(folder / "stack.lock", busy=busy)


def _deploy(folder: Path, parameters: Mapping[str, str], report: Report) -> Stack:
    aws_url, twilio_url = emulators.url(folder, "ministack"), emulators.url(folder, "emulate")
    with report.step("Deploy with sam deploy") as facts:
        outputs = deploy.deploy(folder, aws_url, parameters)
        facts.append(deploy.STACK_NAME)
    with report.step("Store connections, create a caller, set a number"):
        furnish.create_connections(aws_url)
        caller = furnish.create_caller(aws_url, outputs, _known_caller(folder))
        furnish.point_number(twilio_url, outputs["WebhookUrl"])
    stack = {
        "aws_endpoint_url": aws_url,
        "region": REGION,
        "actions_api_url": outputs["ActionsApiUrl"],
        "webhook_url": outputs["WebhookUrl"],
        "stack_name": deploy.STACK_NAME,
        "connections": furnish.CONNECTIONS,
        "caller": caller._asdict(),
        "twilio": {
            "url": twilio_url,
            "account_sid": furnish.ACCOUNT_SID,
            "auth_token": furnish.AUTH_TOKEN,
            "number": furnish.NUMBER,
        },
        "outputs": outputs,
    }
    new = folder / "stack.json.new"
    new.write_text(json.dumps(stack, indent=2) + "\n")
    new.replace(folder / "stack.json")
    return stack


def _known_caller(folder: Path) -> Identity | None:
    try:
        return Identity(**read(folder)["caller"])
    except LocalError:
        return None


def _end(folder: Path) -> bool:
    ran = emulators.stop(folder)
    (folder / "stack.json").unlink(missing_ok=True)
    return ran
