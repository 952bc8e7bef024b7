"""A client and a receiver as they are written on the first day. The faults must make them send twice, and lose events.

The client repeats whatever failed; the receiver believes that the bus took what was answered 200.
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
    """Return the same sends for the naive client, with the faults that Twilio has for it.

    It is no function that could be killed, and its timeout is for each byte: its connection breaks, or hangs,
    at the same points instead.
    """
    controls = []
    for number, send in enumerate(sends):
        markers = [marker.replace("kill", "reset").replace("drip", "hang") for marker in twilio_faults(send)]
        key = make_key(seed, "naive", number, [*markers, "callback=none"])
        controls.append(send._replace(key=key, markers=tuple(markers)))
    return controls


def run(controls: Sequence[Send], url: str, auth: tuple[str, str], journal: Journal, stopped: Event) -> None:
    """Send all, until it is stopped, and write down how each ended."""

    def one(send: Send) -> None:
        if stopped.is_set():
            return
        tries, is_sent = post(url, auth, send)
        journal.write(CONTROL, key=send.key, tries=tries, sent=is_sent)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, controls))


def post(url: str, auth: tuple[str, str], send: Send) -> tuple[int, bool]:
    """Send until it works; return how many requests that took, and whether it did."""
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
    """Return what takes webhooks for a bus."""
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
