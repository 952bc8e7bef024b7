"""Settings from the stack's parameters, read from the environment at call time."""

import os
import re
from typing import NamedTuple, Self

from twilio_connector.errors import InternalError

_TEST_URL = re.compile(r"https://[^\s/?#@\\]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?")


class Settings(NamedTuple):
    """The settings all functions share.

    `twilio_api_url` is empty except in test stacks, where it replaces every Twilio host.
    """

    connection_prefix: str
    default_connection: str
    default_country: str
    twilio_api_url: str

    @classmethod
    def from_env(cls) -> Self:
        """Read the settings; raises InternalError naming the variable that is missing or wrong."""
        url = variable("TWILIO_API_URL")
        # This host receives the credentials, so the template's rule is checked here again.
        if url and not _TEST_URL.fullmatch(url):
            raise InternalError(
                "environment variable TWILIO_API_URL: must be empty, https://host or a loopback address"
            )
        return cls(
            connection_prefix=variable("CONNECTION_PREFIX"),
            default_connection=variable("DEFAULT_CONNECTION"),
            default_country=variable("DEFAULT_COUNTRY"),
            twilio_api_url=url,
        )


def variable(name: str) -> str:
    """Return an environment variable; raises InternalError if the template did not set it."""
    try:
        return os.environ[name]
    except KeyError:
        message = f"environment variable {name}: is missing; deploy the function with the connector's template"
        raise InternalError(message) from None
