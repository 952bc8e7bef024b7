"""Make HTTP requests to the emulators, past proxies and netrc files."""

from typing import Any

import requests

SECONDS = 40  # longer than any function may run


def request(method: str, url: str, *, timeout: float = SECONDS, **options: Any) -> requests.Response:
    """Make a request, as `requests.request` does."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=timeout, **options)
