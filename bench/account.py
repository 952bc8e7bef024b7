"""A fictional Twilio account: its credentials, and its messages in Twilio's format."""

from typing import Any

ACCOUNT_SID = f"AC{'0' * 32}"
AUTH_TOKEN = "made_up_auth_token"  # noqa: S105 made up
NUMBER = "+15551234567"
PHONE = "+15005550006"  # fictional, as all numbers here
SECRET = {
    "account_sid": ACCOUNT_SID,
    "auth_token": AUTH_TOKEN,
    "api_key_sid": f"SK{'0' * 32}",
    "api_key_secret": "made_up_api_key_secret",
    "default_from": NUMBER,
}
SECRET_NAME = "twilio/default"  # noqa: S105 a name

MESSAGES = 25_000
"""The number of messages in the account's list."""


def message(index: int) -> dict[str, Any]:
    """Return a message in Twilio's format."""
    sid = f"SM{index:032x}"
    uri = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{sid}"
    return {
        "account_sid": ACCOUNT_SID,
        "api_version": "2010-04-01",
        "body": f"Your parcel {index} is on its way, and comes between ten and twelve.",
        "date_created": "Mon, 23 Nov 2026 12:00:00 +0000",
        "date_sent": "Mon, 23 Nov 2026 12:00:01 +0000",
        "date_updated": "Mon, 23 Nov 2026 12:00:02 +0000",
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": NUMBER,
        "messaging_service_sid": None,
        "num_media": "0",
        "num_segments": "1",
        "price": "-0.00750",
        "price_unit": "USD",
        "sid": sid,
        "status": "delivered",
        "subresource_uris": {"media": f"{uri}/Media.json"},
        "to": PHONE,
        "uri": f"{uri}.json",
    }
