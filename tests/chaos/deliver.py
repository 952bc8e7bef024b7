"""Deliver webhooks as Twilio does with `#rc=2&rp=all`: retry twice if the answer is not 2xx or does not come."""

import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.journal import FORGED, HOOK_ANSWERS, HOOKS, Journal
from tests.chaos.webhooks import Hook, Stage, Unit
from tests.mutants import Target, Webhook, send

TRIES = 3
_SECONDS = 15
_OK = 200

type Receive = Callable[[Hook], int]
"""Delivers a webhook and returns the status; raises an error if no answer comes."""


def greet(target: Target) -> None:
    """Post a webhook that the verdict ignores, so that a process of the function is ready for the next webhook."""
    webhook = Webhook(name="greeting", fields={}, json=json.dumps({"greeting": str(uuid.uuid4())}).encode())
    send(webhook.request(target), target)


def post(target: Target) -> Receive:
    """Return a function that posts a webhook to a stack and returns the status."""

    def receive(hook: Hook) -> int:
        request = hook.webhook.request(target)
        token = ("I-Twilio-Idempotency-Token", hook.token)
        return send(replace(request, headers=(*request.headers, token)), target, seconds=_SECONDS).status

    return receive


def call_back(target: Target, url: str, sid: str, status: str, sms: Mapping[str, Any]) -> int | None:
    """Send a status callback to one of the connector's URLs, as Twilio's emulator does; return the status, or None."""
    parts = urlsplit(url)
    *_, connection = parts.path.split("/")
    fields = {
        "MessageSid": sid,
        "SmsSid": sid,
        "SmsStatus": status,
        "MessageStatus": status,
        "To": sms["to"],
        "From": "+15551234567",
        "Body": sms["message"],
        "NumMedia": "0",
        "NumSegments": "1",
        "ApiVersion": "2010-04-01",
    }
    named = target._replace(connection=connection)
    request = Webhook(name="status", fields=fields, query=parts.query).request(named)
    with suppress(OSError, http.client.HTTPException):
        return send(request, named, seconds=_SECONDS).status
    return None


class Deliveries:
    """The deliveries to one receiver."""

    def __init__(
        self, receive: Receive, target: Target, journal: Journal, stopped: threading.Event, callers: int
    ) -> None:
        """Record deliveries and answers in the journal; at most `callers` deliveries wait for an answer at a time."""
        self._receive = receive
        self._target = target
        self._journal = journal
        self._stopped = stopped
        self._callers = callers
        self._slots = threading.Semaphore(callers)
        self._stage = Stage.BEFORE
        self.accepted: set[str] = set()
        """The names of the events whose webhook was answered 200."""

    def run(self, stage: Stage, units: Sequence[Unit]) -> None:
        """Deliver all units, until the run is stopped."""
        self._stage = stage
        with ThreadPoolExecutor(self._callers) as pool:
            list(pool.map(self._unit, units))

    def _unit(self, unit: Unit) -> None:
        self._deliver_all(unit)
        [hook, *_] = unit.hooks
        if unit.is_forged and self._stage is not Stage.TABLE_AWAY and (forged := hook.another_reading(self._target)):
            status: int | None = None
            with self._slots, suppress(OSError, http.client.HTTPException):
                status = send(forged, self._target, seconds=_SECONDS).status
            self._journal.write(FORGED, hook=hook.key, status=status)

    def _deliver_all(self, unit: Unit) -> None:
        if not unit.at_once:
            for hook in unit.hooks:
                self._deliver(hook)
            return
        start = threading.Barrier(len(unit.hooks))

        def together(hook: Hook) -> None:
            start.wait(_SECONDS)
            self._deliver(hook)

        with ThreadPoolExecutor(len(unit.hooks)) as pool:
            list(pool.map(together, unit.hooks))

    def _deliver(self, hook: Hook) -> None:
        for _ in range(TRIES):
            if self._stopped.is_set() or self._attempt(hook) == _OK:
                return

    def _attempt(self, hook: Hook) -> int | None:
        """Deliver a webhook once, and record the delivery and the answer; return the status, or None if none came."""
        with self._slots:
            self._journal.write(
                HOOKS,
                hook=hook.key,
                kind=hook.kind,
                part=hook.part,
                about=hook.about,
                status=hook.status,
                crash=hook.crash,
                events=hook.events,
                says=hook.says(self._target),
                stage=self._stage,
            )
            began = time.time()
            try:
                status: int | None = self._receive(hook)
            except (OSError, http.client.HTTPException):
                status = None
            self._journal.write(HOOK_ANSWERS, hook=hook.key, began=round(began, 3), status=status)
        if status == _OK:
            self.accepted.update(hook.events)
        return status
