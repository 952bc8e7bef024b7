"""Create resources that the template does not have: connections, a caller, and a number that calls the webhook."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from local import ROOT, LocalError, loopback, rights
from local.aws import REGION, Identity, client
from local.deploy import STACK_NAME

CONNECTIONS = {"api_key": "default", "auth_token": "main-token"}

# The account that the Twilio emulator has from the start.
ACCOUNT_SID = f"AC{'0' * 32}"
AUTH_TOKEN = "twilio_test_auth_token"  # noqa: S105 made up
NUMBER = "+15551234567"
_NUMBER_SID = f"PN{'0' * 32}"
_SERVICE_SID = f"MG{'0' * 32}"
API_KEY_SID = f"SK{'0' * 32}"
API_KEY_SECRET = "twilio_test_api_secret"  # noqa: S105 made up

_CALLER = "caller"


def create_connections(endpoint_url: str) -> None:
    """Store the emulator's credentials, once as an API key and once as an auth token."""
    secrets = client("secretsmanager", endpoint_url)
    prefix = _parameter(endpoint_url, "ConnectionPrefix")
    account = {"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN, "default_from": NUMBER}
    api_key = {"api_key_sid": API_KEY_SID, "api_key_secret": API_KEY_SECRET}
    for name, content in ((CONNECTIONS["api_key"], account | api_key), (CONNECTIONS["auth_token"], account)):
        try:
            secrets.create_secret(Name=f"{prefix}{name}", SecretString=json.dumps(content))
        except secrets.exceptions.ResourceExistsException:
            secrets.put_secret_value(SecretId=f"{prefix}{name}", SecretString=json.dumps(content))


def create_caller(endpoint_url: str, outputs: Mapping[str, str], known: Identity | None) -> Identity:
    """Create an IAM user with the rights of examples/caller-policy.json; a known access key is kept."""
    iam = client("iam", endpoint_url)
    with suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_user(UserName=_CALLER)
    iam.put_user_policy(UserName=_CALLER, PolicyName=_CALLER, PolicyDocument=caller_policy(outputs))
    keys = [key["AccessKeyId"] for key in iam.list_access_keys(UserName=_CALLER)["AccessKeyMetadata"]]
    if known and known.access_key_id in keys:
        return known
    key = iam.create_access_key(UserName=_CALLER)["AccessKey"]
    return Identity(key["AccessKeyId"], key["SecretAccessKey"])


def caller_policy(outputs: Mapping[str, str]) -> str:
    """Return examples/caller-policy.json with this stack's names filled in."""
    names = dict(outputs) | {
        "Region": REGION,
        "AccountId": outputs["SendSmsFunctionArn"].split(":")[4],
        "ActionsApiId": outputs["ActionsApiUrl"].rpartition("/")[2],
    }
    return rights.filled((ROOT / "examples" / "caller-policy.json").read_text(), names)


def point_number(twilio_url: str, webhook_url: str) -> None:
    """Configure the number and the messaging service to call the webhook, as a user configures them at Twilio."""
    account = f"{twilio_url}/2010-04-01/Accounts/{ACCOUNT_SID}"
    call_twilio(
        "POST",
        f"{account}/IncomingPhoneNumbers/{_NUMBER_SID}.json",
        {"SmsUrl": webhook_url, "SmsMethod": "POST", "StatusCallback": webhook_url},
    )
    call_twilio("POST", f"{twilio_url}/messaging/v1/Services/{_SERVICE_SID}", {"StatusCallback": webhook_url})


def call_twilio(method: str, url: str, form: Mapping[str, str] | None = None) -> Any:
    """Send a request to the Twilio emulator, and return its JSON; raises LocalError if it fails."""
    answer = loopback.request(method, url, data=form, auth=(ACCOUNT_SID, AUTH_TOKEN))
    if not answer.ok:
        raise LocalError(f"emulate answered {answer.status_code} to {method} {url}: {answer.text[:200]}")
    return answer.json()


def _parameter(endpoint_url: str, name: str) -> str:
    """Return the value of a parameter of the deployed stack."""
    stack = client("cloudformation", endpoint_url).describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    values = {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in stack["Parameters"]}
    value: str = values[name]
    return value
