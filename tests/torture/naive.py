"""A client as it is written on the first day: it repeats whatever failed. The faults must make it send twice."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import requests

from tests.torture.journal import CONTROL, Journal
from tests.torture.schedule import Send, make_key, twilio_faults

TRIES = 4
_SECONDS = 2
_THREADS = 32
_FROM = "+15551234567"


def control(sends: Sequence[Send], seed: int) -> list[Send]:
    """Return the same sends for the naive client, with the faults that Twilio has for it.

    It is no function that could be killed, and its patience is for each byte: its connection breaks, or hangs,
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
