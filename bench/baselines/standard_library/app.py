"""Send one SMS with the standard library's HTTP and TLS alone: the floor under every start in Python."""

import hmac
import http.client
import json
import os
import ssl
from base64 import b64encode
from typing import Any
from urllib.parse import urlencode, urlsplit

context = ssl.create_default_context()  # the authorities, read while Lambda gives whole processors
digest = hmac.digest  # what a signature to AWS or of Twilio needs at least


def handler(event: dict[str, Any], _context: object) -> Any:
    """Return Twilio's message."""
    account = os.environ["TWILIO_ACCOUNT_SID"]
    credentials = b64encode(f"{account}:{os.environ['TWILIO_AUTH_TOKEN']}".encode()).decode()
    form = urlencode({"To": event["to"], "From": os.environ["TWILIO_FROM"], "Body": event["message"]})
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/x-www-form-urlencoded"}
    host = urlsplit(os.environ["TWILIO_API_URL"]).netloc
    connection = http.client.HTTPSConnection(host, timeout=10, context=context)
    connection.request("POST", f"/2010-04-01/Accounts/{account}/Messages.json", form, headers)
    return json.loads(connection.getresponse().read())
