"""A Twilio on loopback and a way to AWS that fail on purpose, and places where nothing must arrive.

One request after the other:

    with FaultServer() as server:  # server.url is a TwilioApiUrl, here or for a deployed stack
        server.script(faults.status(503), faults.OK)  # in turn; the last from then on
        ...
        assert ["status_503", "ok"] == [each.fault for each in server.requests]

Requests that run at the same time each name their own faults, in the URL or in the text. Names are the keys
of `faults.NAMED`; others are added to `server.named`:

    server.named["astray"] = faults.redirect(307, canary.url)
    send(message="unique text fault=reset_after_read")
    send(message="unique text fault=status_429_seconds,ok")  # the first attempt, the second
    send(message="unique text fault=astray")

A request that hangs until it is released (or the server is closed):

    server.script(faults.hang(then=faults.OK))
    ...  # start the call elsewhere
    server.wait_for(1)  # the request is there, whole
    server.release()

Bad certificates (the client is to trust `server.ca_file`, so that just one thing is wrong with each):

    with FaultServer(tls="expired") as server:
        ...
        assert (1, []) == (server.connections, server.requests)

In front of a Twilio that works, as a relay:

    with FaultServer(upstream=emulator_url) as server:
        send(message="unique text fault=500_after")  # taken by the emulator, answered 500
        send(message="unique text fault=429_before,ok")  # a name that ends with _before: never forwarded
        send(message="unique text fault=hang_after callback=none")  # so that only a look-up tells
        assert [True, False, True, True] == [each.forwarded for each in server.requests]
        with server.refusing():
            ...  # connection refused

In front of AWS there is `AwsProxy`, which `aws` describes.

Nothing must leave:

    with FaultServer() as server, Canary() as canary, resolve_to(canary, allow=[server.port]):
        ...
        assert [] == canary.visits

Many messages, and pages that lead astray:

    history = server.history(2500)  # history.sids, newest first
    server.history(3, evil="foreign_host", elsewhere=canary.url)

Credentials that are checked, made and deleted:

    credentials = Credentials(account_sid, auth_token, {sid: Key(secret)})
    server.check(credentials)
    ...
    assert credentials.accepts(user, password)
"""

from . import aws, faults
from .aws import AwsFault, AwsProxy
from .canary import Canary, Visit, black_hole, closed_port, resolve_to
from .faults import Fault
from .keys import Credentials, Key
from .lag import Lag
from .server import FaultServer
from .twilio import History
from .wire import Reply, Request

__all__ = [
    "AwsFault",
    "AwsProxy",
    "Canary",
    "Credentials",
    "Fault",
    "FaultServer",
    "History",
    "Key",
    "Lag",
    "Reply",
    "Request",
    "Visit",
    "aws",
    "black_hole",
    "closed_port",
    "faults",
    "resolve_to",
]
