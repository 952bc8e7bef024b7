"""Call the AWS emulator, without this machine's AWS configuration."""

import os
from typing import Any, NamedTuple

import boto3
import botocore.session
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from local import loopback

REGION = "us-east-1"


class Identity(NamedTuple):
    """The access key that signs requests."""

    access_key_id: str
    secret_access_key: str


ROOT_USER = Identity("test", "test")

_NOTHING_FROM_OUTSIDE = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


def client(service: str, endpoint_url: str, identity: Identity = ROOT_USER) -> Any:
    """Return a client that ignores profiles and proxies."""
    session = boto3.Session(
        *identity,
        region_name=REGION,
        botocore_session=botocore.session.Session(session_vars=_NOTHING_FROM_OUTSIDE),
    )
    config = Config(proxies={}, read_timeout=loopback.SECONDS, retries={"max_attempts": 0})
    return session.client(service, endpoint_url=endpoint_url, config=config)


def call_api(method: str, url: str, identity: Identity | None = None, *, body: str | None = None) -> requests.Response:
    """Send a request to an API of API Gateway, signed if there is an identity."""
    request = AWSRequest(method, url, data=body, headers={"Content-Type": "application/json"} if body else {})
    if identity:
        SigV4Auth(Credentials(*identity), "execute-api", REGION).add_auth(request)
    return loopback.request(method, url, data=body, headers=dict(request.headers))
