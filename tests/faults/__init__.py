"""Servers on loopback that fail on purpose in place of Twilio and AWS, and canaries that no request may reach.

Requests one after the other:

    with FaultServer() as server:  # server.url is a TwilioApiUrl, here or for a deployed stack
        server.script(faults.status(503), faults.OK)  # in this order; the last one repeats
        ...
        assert ["status_503", "ok"] == [each.fault for each in server.requests]

Concurrent requests each name their own faults, in the URL or in the text. The names are the keys of
`faults.NAMED`. A test can add others to `server.named`:

    server.named["astray"] = faults.redirect(307, canary.url)
    send(message="unique text fault=reset_after_read")
    send(message="unique text fault=status_429_seconds,ok")  # the first attempt, the second
    send(message="unique text fault=astray")

A request that hangs until it is released (or the server is closed):

    server.script(faults.hang(then=faults.OK))
    ...  # start the call elsewhere
    server.wait_for(1)  # the server has received the whole request
    server.release()

Bad certificates (the client must trust `server.ca_file`, so that each certificate has exactly one defect):

    with FaultServer(tls="expired") as server:
        ...
        assert (1, []) == (server.connections, server.requests)

A relay in front of a Twilio emulator that works:

    with FaultServer(upstream=emulator_url) as server:
        send(message="unique text fault=500_after")  # the emulator accepts it; the relay answers 500
        send(message="unique text fault=429_before,ok")  # a name that ends with _before: never forwarded
        send(message="unique text fault=hang_after callback=none")  # only a look-up can find its outcome
        assert [True, False, True, True] == [each.forwarded for each in server.requests]
        with server.refusing():
            ...  # connection refused

`AwsProxy` is the proxy in front of AWS. The module `aws` describes it.

No request may leave this machine:

    with FaultServer() as server, Canary() as canary, resolve_to(canary, allow=[server.port]):
        ...
        assert [] == canary.visits

Many messages, and pages with malicious links:

    history = server.history(2500)  # history.sids, newest first
    server.history(3, evil="foreign_host", elsewhere=canary.url)

Credentials that the server checks, creates and deletes:

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
