"""Send one SMS with `requests` only. Credentials are from the environment; nothing is checked, logged or stored."""

import os
from typing import Any

import requests

session = requests.Session()


def handler(event: dict[str, Any], _context: object) -> Any:
    """Send an SMS, and return Twilio's message."""
    account = os.environ["TWILIO_ACCOUNT_SID"]
    answer = session.post(
        f"{os.environ['TWILIO_API_URL']}/2010-04-01/Accounts/{account}/Messages.json",
        data={"To": event["to"], "From": os.environ["TWILIO_FROM"], "Body": event["message"]},
        auth=(account, os.environ["TWILIO_AUTH_TOKEN"]),
        timeout=(3, 10),
    )
    answer.raise_for_status()
    return answer.json()
