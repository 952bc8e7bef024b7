"""A naive client and a naive receiver. The faults must make the client send twice, and the receiver lose events.

The client retries every failed request. The receiver assumes that the bus took all events if it answered 200.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import boto3
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.aws import REGION, ROOT_USER
from tests.chaos.deliver import Receive
from tests.chaos.journal import CONTROL, Journal
from tests.chaos.schedule import Send, make_key, twilio_faults
from tests.chaos.webhooks import NAIVE, Hook

TRIES = 4
_SECONDS = 2
_THREADS = 32
_FROM = "+15551234567"


def control(sends: Sequence[Send], seed: int) -> list[Send]:
    """Return the same ordinary sends for the naive client, with Twilio's faults only.

    The naive client's timeout restarts with each byte, so an answer that drips becomes one that hangs.
    """
    controls = []
    for number, send in enumerate(sends):
        markers = [marker.replace("drip", "hang") for marker in twilio_faults(send)]
        key = make_key(seed, "naive", number, [*markers, "callback=none"])
        controls.append(send._replace(key=key, markers=tuple(markers)))
    return controls


def run(controls: Sequence[Send], url: str, auth: tuple[str, str], journal: Journal, stopped: Event) -> None:
    """Send all, until the run is stopped, and record the result of each send."""

    def one(send: Send) -> None:
        if stopped.is_set():
            return
        tries, is_sent = post(url, auth, send)
        journal.write(CONTROL, key=send.key, tries=tries, sent=is_sent)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, controls))


def post(url: str, auth: tuple[str, str], send: Send) -> tuple[int, bool]:
    """Send until a request succeeds, at most `TRIES` times; return the number of requests and whether one succeeded."""
    form = {"To": "+15005550006", "From": _FROM, "Body": send.text}
    for attempt in range(1, TRIES + 1):
        try:
            answer = requests.post(
                f"{url}/2010-04-01/Accounts/{auth[0]}/Messages.json", data=form, auth=auth, timeout=_SECONDS
            )
            answer.raise_for_status()
            if answer.json()["sid"]:
                return attempt, True
        except (requests.RequestException, ValueError, LookupError):
            continue
    return TRIES, False


def receiver(aws_url: str, bus: str) -> Receive:
    """Return a function that receives a webhook, puts its events on a bus, and returns the status."""
    key_id, secret = ROOT_USER
    config = Config(proxies={}, connect_timeout=1, read_timeout=_SECONDS, max_pool_connections=_THREADS)
    events = boto3.client(
        "events",
        endpoint_url=aws_url,
        region_name=REGION,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=config,
    )

    def receive(hook: Hook) -> int:
        entry = {"EventBusName": bus, "Source": NAIVE, "DetailType": "Webhook"}
        try:
            events.put_events(Entries=[entry | {"Detail": json.dumps(each)} for each in hook.parameters])
        except (BotoCoreError, ClientError):
            return 500
        return 200

    return receive
