"""Send HTTP requests to the emulators, without proxies and netrc files."""

from typing import Any

import requests

SECONDS = 40  # longer than the timeout of any function


def request(method: str, url: str, *, timeout: float = SECONDS, **options: Any) -> requests.Response:
    """Send a request with the options of `requests.request`, and return the response."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=timeout, **options)
