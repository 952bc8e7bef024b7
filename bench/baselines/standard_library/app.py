"""Send one SMS with the standard library's HTTP and TLS only: the lower limit for every start in Python."""

import hmac
import http.client
import json
import os
import ssl
from base64 import b64encode
from typing import Any
from urllib.parse import urlencode, urlsplit

context = ssl.create_default_context()  # reads the authorities while Lambda gives whole processors
digest = hmac.digest  # every signature of AWS or Twilio needs at least this


def handler(event: dict[str, Any], _context: object) -> Any:
    """Send an SMS, and return Twilio's message."""
    account = os.environ["TWILIO_ACCOUNT_SID"]
    credentials = b64encode(f"{account}:{os.environ['TWILIO_AUTH_TOKEN']}".encode()).decode()
    form = urlencode({"To": event["to"], "From": os.environ["TWILIO_FROM"], "Body": event["message"]})
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/x-www-form-urlencoded"}
    host = urlsplit(os.environ["TWILIO_API_URL"]).netloc
    connection = http.client.HTTPSConnection(host, timeout=10, context=context)
    connection.request("POST", f"/2010-04-01/Accounts/{account}/Messages.json", form, headers)
    return json.loads(connection.getresponse().read())
