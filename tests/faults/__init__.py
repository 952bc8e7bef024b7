"""A small server that fails on purpose, and places where nothing must arrive.

    with FaultServer() as server:                               # server.url is a TwilioApiUrl
        server.script(faults.status(503), faults.OK)            # in turn; the last holds from then on
        ...
        assert [503...] == [request.fault for request in server.requests]

    with FaultServer() as server, Canary() as canary, resolve_to(canary, allow=[server.port]):
        server.script(faults.redirect(307, canary.url))
        ...
        assert [] == canary.visits

`faults` holds everything that can go wrong. Where requests run at the same time, each names its own fault in its
URL or its text: `Body=... fault=reset_after_read` (see FaultServer).
"""

from . import faults
from .canary import Canary, Visit, black_hole, closed_port, resolve_to
from .faults import Fault
from .server import FaultServer
from .twilio import History
from .wire import Reply, Request

__all__ = [
    "Canary",
    "Fault",
    "FaultServer",
    "History",
    "Reply",
    "Request",
    "Visit",
    "black_hole",
    "closed_port",
    "faults",
    "resolve_to",
]
