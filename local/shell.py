"""Write the shell environment for the documentation's commands: names, two identities and request signing."""

from shlex import quote
from typing import Any

from local import ROOT
from local.aws import ROOT_USER

API = """\
api() {
  curl --silent --show-error --write-out '\\n' --aws-sigv4 "aws:amz:${AWS_REGION}:execute-api" \\
    --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \\
    ${AWS_SESSION_TOKEN:+"-Hx-amz-security-token: $AWS_SESSION_TOKEN"} "$@"
}
"""
"""The documentation also defines this function; a test compares both."""

_HEAD = """\
# The stack on this machine, for a shell of any kind: 'make shell', or '. .local/env'.
# It goes when the stack ends. Nothing of your own AWS set-up is used while it holds.

unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN AWS_SECURITY_TOKEN
"""

_TAIL = """\
# Whose requests these are: the owner of the account, or a caller who has no more than examples/caller-policy.json.
as_deployer() { export %(deployer)s; }
as_caller() { export %(caller)s; }
as_deployer

# The project's own AWS CLI, where 'make shell' installed it. Version 1 must be told the address of queues each time.
AWS_CLI=%(cli)s
[ -x "$AWS_CLI" ] || AWS_CLI=aws
aws() { command "$AWS_CLI" --endpoint-url "$AWS_ENDPOINT_URL" "$@"; }

# The project's own Python, which has boto3.
python3() { command %(python)s "$@"; }

"""


def environment(stack: dict[str, Any]) -> str:
    """Return the text of `.local/env`."""
    twilio = stack["twilio"]
    variables = {
        "AWS_ENDPOINT_URL": stack["aws_endpoint_url"],
        "AWS_REGION": stack["region"],
        "AWS_DEFAULT_REGION": stack["region"],
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PAGER": "",
        "NO_PROXY": "127.0.0.1,localhost",
        "StackName": stack["stack_name"],
        **stack["outputs"],
        "TwilioUrl": twilio["url"],
        "TwilioNumber": twilio["number"],
        "TWILIO_ACCOUNT_SID": twilio["account_sid"],
        "TWILIO_AUTH_TOKEN": twilio["auth_token"],
    }
    exports = "".join(f"export {name}={quote(value)}\n" for name, value in variables.items())
    caller = stack["caller"]
    tail = _TAIL % {
        "deployer": _keys(*ROOT_USER),
        "caller": _keys(caller["access_key_id"], caller["secret_access_key"]),
        "python": quote(str(ROOT / ".venv" / "bin" / "python")),
        "cli": quote(str(ROOT / ".venv-aws" / "bin" / "aws")),
    }
    return f"{_HEAD}{exports}\n{tail}{API}"


def _keys(access_key_id: str, secret_access_key: str) -> str:
    return f"AWS_ACCESS_KEY_ID={quote(access_key_id)} AWS_SECRET_ACCESS_KEY={quote(secret_access_key)}"
