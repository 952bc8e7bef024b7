"""A rotation that is interrupted anywhere ends with new credentials, and the credentials in use always work."""

import json
import logging
import math
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Literal

import pytest
import responses
import rotate_connection
from botocore.retries.standard import ExponentialBackoff
from twilio_connector import telemetry
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    InvalidInputError,
    OutcomeUnknownError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
    TwilioRejectedError,
)
from twilio_connector.rotation import steps

from tests.aws_wire import FIRST, AwsWire, RotatedSecret
from tests.conftest import Context, LoadEvent
from tests.faults import Credentials, Fault, FaultServer, Key, faults
from tests.faults.wire import Exchange, Reply, Request
from tests.unit.conftest import ACCOUNT_SID, API_KEY, Log

SECOND, THIRD, FOURTH, EDITED = (f"{name}-version-{'0' * 32}" for name in ("2nd", "3rd", "4th", "edited"))
STEPS = ["createSecret", "setSecret", "testSecret", "finishSecret"]
SECONDS = 120.0
PATH = f"/2010-04-01/Accounts/{ACCOUNT_SID}"
SECONDARY = "/v1/AuthTokens/Secondary"
PROMOTE = "/v1/AuthTokens/Promote"
TOKEN = "not-a-token-to-begin-with"
KEY_SID, KEY_SECRET = API_KEY["api_key_sid"], API_KEY["api_key_secret"]
OF_SOMEBODY_ELSE = {"SK" + "e" * 32: Key("not-a-secret-of-ours", "twilio-connector"), "SK" + "f" * 32: Key("x")}
REST = {"default_from": "+15551234567", "team": {"name": "shop", "since": [1, 2.5, None]}, "note": "é \u0000"}
KEY_CONNECTION = {
    "account_sid": ACCOUNT_SID,
    "api_key_sid": KEY_SID,
    "api_key_secret": KEY_SECRET,
    "auth_token": TOKEN,
    **REST,
}
TOKEN_CONNECTION = {"account_sid": ACCOUNT_SID, "auth_token": TOKEN, **REST}

type Kind = Literal["key", "token"]


class Rig:
    """A connection's secret and its account at Twilio, whose calls can be made to fail.

    `calls` has the operations of AWS and the requests to Twilio, in order. `broken` has what was wrong after any of
    them: AWSCURRENT did not work, webhooks were refused, other fields were changed, or a token was promoted too early.
    Set `watched` to false in a test that breaks the connection on purpose.
    """

    def __init__(self, twilio: FaultServer, aws_wire: AwsWire, delays: list[float]) -> None:
        """Begin with an API key, and let all calls through."""
        self.twilio = twilio
        self.aws_wire = aws_wire
        self.delays = delays
        self.calls: list[str] = []
        self.broken: list[str] = []
        self.watched = True
        self.heal()
        self.have(KEY_CONNECTION)

    def have(self, connection: dict[str, Any], **keys: Key) -> None:
        """Begin with this connection, and with these keys at Twilio besides its own."""
        held = {KEY_SID: Key(KEY_SECRET)} | keys | OF_SOMEBODY_ELSE
        self.rest = rest(connection)
        self.begin_with(RotatedSecret("twilio/default", json.dumps(connection)), Credentials(ACCOUNT_SID, TOKEN, held))

    def begin_with(self, secret: RotatedSecret, credentials: Credentials) -> None:
        """Begin with this secret in Secrets Manager and these credentials at Twilio."""
        self.secret, self.credentials = secret, credentials
        self.aws_wire.rotated = {secret.arn: secret}
        self.twilio.check(credentials)
        self.calls.clear()
        self._moved_at = len(self.delays)

    @property
    def current(self) -> dict[str, Any]:
        """The connection in use."""
        return dict(json.loads(self.secret.current))

    @property
    def own_keys(self) -> set[str]:
        """The keys at Twilio, without those of other owners."""
        return self.credentials.keys.keys() - OF_SOMEBODY_ELSE.keys()

    def cut(self, at: float, *, lost: bool, once: bool) -> None:
        """Let the call of that number fail, and all later calls too unless `once` is set.

        If `lost` is set, the call of that number is carried out, and only its answer is lost.
        """
        self._cut_at, self._lost, self._once = at, lost, once
        self.calls.clear()

    def heal(self) -> None:
        """Let all calls through."""
        self._cut_at, self._lost, self._once = math.inf, False, False

    def take(self, step: str, version: str = SECOND, seconds: float = SECONDS) -> None:
        """Take one step of a rotation."""
        event = {"Step": step, "SecretId": self.secret.arn, "ClientRequestToken": version, "RotationToken": "of AWS"}
        rotate_connection.handler(event, Context(seconds))

    def rotate(self, version: str = SECOND, *, attempts: int = 1) -> int:
        """Rotate as Secrets Manager does, from the first step again after a failure; return the number of attempts."""
        self.secret.rotate(version)
        for attempt in range(1, attempts + 1):
            try:
                for step in STEPS:
                    self.take(step, version)
            except ConnectorError:
                if attempt == attempts:
                    raise
                self.heal()
            else:
                return attempt
        raise AssertionError

    def answer(
        self, carry_out: Callable[[str, dict[str, Any]], Any], operation: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Return the answer to a call to AWS, or status 0 if the call was cut."""
        moves = body.get("VersionStage") == "AWSCURRENT" and operation == "UpdateSecretVersionStage"
        self._moved_at = len(self.delays) if moves else self._moved_at
        reply = self._through(operation, lambda: carry_out(operation, body))
        return (0, {}) if reply is None else reply

    def reply(self, carry_out: Callable[[Request], Reply], request: Request) -> Reply:
        """Return the answer to a request to Twilio, or status 0 if the request was cut."""
        if request.path == PROMOTE and steps.PROMOTE_AFTER not in self.delays[self._moved_at :]:
            self.broken.append("it was promoted too early")
        name = f"{request.method} {request.path.removeprefix(PATH)}"
        return self._through(name, lambda: carry_out(request)) or Reply(0)

    def _through[R](self, name: str, carry_out: Callable[[], R]) -> R | None:
        number = len(self.calls)
        self.calls.append(name)
        is_cut = number == self._cut_at or (number > self._cut_at and not self._once)
        if is_cut and not (number == self._cut_at and self._lost):
            return None
        result = carry_out()
        self._check(name)
        return None if is_cut else result

    def _check(self, name: str) -> None:
        """Record what is wrong after this call."""
        if not self.watched:
            return
        current = self.current
        user = current.get("api_key_sid", ACCOUNT_SID)
        if not self.credentials.accepts(user, current.get("api_key_secret", current["auth_token"])):
            self.broken.append(f"AWSCURRENT did not work after {name}")
        if self.credentials.primary not in {current["auth_token"], current.get("secondary_auth_token")}:
            self.broken.append(f"webhooks were refused after {name}")
        if rest(current) != self.rest:
            self.broken.append(f"other fields were changed after {name}")


def rest(connection: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that no rotation changes."""
    rotated = {"auth_token", "secondary_auth_token", "api_key_sid", "api_key_secret"}
    return {name: value for name, value in connection.items() if name not in rotated}


def talk(exchange: Exchange) -> None:
    """Answer a request, or reset the connection if the request was cut."""
    if exchange.normal.status:
        exchange.reply(exchange.normal)
    else:
        exchange.close(reset=True)


@pytest.fixture
def rig(twilio: FaultServer, aws_wire: AwsWire, delays: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Yield a connection with an API key, and fail the test if anything was wrong after any call.

    boto3 retries without delay.
    """
    rig = Rig(twilio, aws_wire, delays)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
    answer, reply = aws_wire.answer, twilio._account.reply
    monkeypatch.setattr(aws_wire, "answer", lambda *call: rig.answer(answer, *call))
    monkeypatch.setattr(twilio._account, "reply", lambda request: rig.reply(reply, request))
    twilio.script(Fault("line", talk))
    yield rig

    assert [] == rig.broken


@pytest.fixture
def token_rig(rig: Rig) -> Rig:
    """Return a connection with an auth token."""
    rig.have(TOKEN_CONNECTION)
    return rig


def begin(rig: Rig, kind: Kind) -> None:
    """Begin with a connection that has an API key or an auth token."""
    rig.have(KEY_CONNECTION if kind == "key" else TOKEN_CONNECTION)


def check_end(rig: Rig, version: str, before: dict[str, Any]) -> None:
    """Check a rotation's result: the new credentials, the previous ones as far as they stay valid, and nothing else."""
    current = rig.current
    assert version == rig.secret.staged("AWSCURRENT")
    assert rig.secret.staged("AWSPENDING") is None
    assert before == json.loads(rig.secret.values[rig.secret.staged("AWSPREVIOUS") or ""])
    if "api_key_sid" in before:
        assert {before["api_key_sid"], current["api_key_sid"]} == rig.own_keys
        assert 2 == len(rig.own_keys)
        assert before["auth_token"] == current["auth_token"] == rig.credentials.primary
    else:
        assert {KEY_SID} == rig.own_keys
        assert before["auth_token"] == current["secondary_auth_token"]
        assert current["auth_token"] == rig.credentials.primary
    assert rig.credentials.secondary is None
    assert list(rig.rest) == list(rest(current))


# ---------------------------------------------------------------- rotations without failures


def test_the_event_file_is_taken(rig: Rig, event: LoadEvent) -> None:
    """The example event is accepted: testSecret tests the version that createSecret stored."""
    step = event("rotate_connection")
    version = step["ClientRequestToken"]
    rig.secret.rotate(version)
    rig.take("createSecret", version)
    rotate_connection.handler(step, Context(SECONDS))

    new = json.loads(rig.secret.values[version])
    assert (step["SecretId"], "GET /Messages.json") == (rig.secret.arn, rig.calls[-1])
    assert (new["api_key_sid"], new["api_key_secret"]) == rig.twilio.requests[-1].credentials


def test_an_api_key_is_rotated(rig: Rig) -> None:
    """The auth token makes the new key. The old key stays valid for the functions that have it in memory."""
    rig.rotate()

    check_end(rig, SECOND, KEY_CONNECTION)
    assert ["GET /Keys.json", "POST /Keys.json", "GET /Messages.json"] == [call for call in rig.calls if " " in call]
    assert {(ACCOUNT_SID, TOKEN)} == {request.credentials for request in rig.twilio.requests[:2]}
    assert rig.credentials.accepts(KEY_SID, KEY_SECRET)
    assert [] == rig.delays


def test_the_next_rotation_deletes_the_old_key(rig: Rig) -> None:
    """The next rotation first deletes the old key, and does not touch the keys of other owners."""
    rig.rotate(SECOND)
    second = rig.current
    rig.calls.clear()
    rig.rotate(THIRD)

    check_end(rig, THIRD, second)
    assert ["GET /Keys.json", f"DELETE /Keys/{KEY_SID}.json", "POST /Keys.json"] == [
        call for call in rig.calls if "Keys" in call
    ]
    assert OF_SOMEBODY_ELSE.items() <= rig.credentials.keys.items()


def test_an_auth_token_is_rotated(token_rig: Rig) -> None:
    """A new auth token is promoted only once every container uses it.

    The delay is longer than the time for which a container may refuse to read the secret again.
    """
    token_rig.rotate()

    check_end(token_rig, SECOND, TOKEN_CONNECTION)
    told = [call for call in token_rig.calls if call.startswith(("POST", "Update", "Put"))]
    assert [
        f"POST {SECONDARY}",
        "PutSecretValue",
        "UpdateSecretVersionStage",
        f"POST {PROMOTE}",
        "UpdateSecretVersionStage",
    ] == told
    assert [steps.PROMOTE_AFTER] == token_rig.delays
    assert steps.PROMOTE_AFTER > 30
    assert not token_rig.credentials.accepts(ACCOUNT_SID, TOKEN)


def test_an_auth_token_is_rotated_again(token_rig: Rig) -> None:
    """A second rotation deletes no token: the old token that the connection still has is not valid any more."""
    token_rig.rotate(SECOND)
    second = token_rig.current
    token_rig.rotate(THIRD)

    check_end(token_rig, THIRD, second)
    assert f"DELETE {SECONDARY}" not in token_rig.calls


@pytest.mark.parametrize("kind", ["key", "token"])
def test_a_label_that_is_gone_already_is_not_taken_off(rig: Rig, kind: Kind) -> None:
    """AWSPENDING is removed only if it is still there, because AWS documents both that it stays and that it goes."""
    begin(rig, kind)
    rig.secret.takes_pending_off = True
    before = rig.current
    rig.rotate()

    check_end(rig, SECOND, before)
    assert 1 == rig.calls.count("UpdateSecretVersionStage")


@pytest.mark.parametrize("kind", ["key", "token"])
def test_each_step_can_be_taken_twice(rig: Rig, kind: Kind) -> None:
    """Each step can be taken twice, and Twilio makes new credentials only once."""
    begin(rig, kind)
    before = rig.current
    rig.secret.rotate(SECOND)
    for step in STEPS:
        rig.take(step)
        rig.take(step)

    check_end(rig, SECOND, before)
    assert 1 == sum(call in {"POST /Keys.json", f"POST {SECONDARY}"} for call in rig.calls)
    assert (kind == "token") == rig.calls.count(f"POST {PROMOTE}")


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_version_in_use_is_left_alone(rig: Rig, step: str) -> None:
    """A new attempt after finishSecret repeats the first steps, which do not change the version in use."""
    rig.rotate()
    rig.calls.clear()
    rig.take(step)

    assert ["DescribeSecret"] == rig.calls


def test_setting_does_nothing(rig: Rig) -> None:
    """The step setSecret does nothing, because Twilio itself makes the credentials."""
    rig.secret.rotate(SECOND)
    rig.take("setSecret")

    assert ["DescribeSecret"] == rig.calls


def test_a_set_up_for_later_tests_what_is_used(rig: Rig) -> None:
    """The step testSecret tests the credentials in use if Secrets Manager calls it alone, with an empty version.

    It does so when a rotation is scheduled for later.
    """
    rig.secret.rotate(SECOND)
    rig.take("testSecret")

    assert (KEY_SID, KEY_SECRET) == rig.twilio.requests[-1].credentials


# ---------------------------------------------------------------- interruptions


@pytest.mark.exhaustive
@pytest.mark.parametrize("once", [False, True], ids=["killed", "one call"])
@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["key", "token"])
def test_a_rotation_may_be_interrupted_anywhere(rig: Rig, kind: Kind, *, lost: bool, once: bool) -> None:
    """Each call of a rotation can fail, before or after it is carried out. The next attempt completes the rotation."""
    begin(rig, kind)
    rig.rotate(SECOND)
    rotated = deepcopy((rig.secret, rig.credentials))
    rig.calls.clear()
    rig.rotate(THIRD)
    calls = list(rig.calls)
    for at in range(len(calls)):
        rig.begin_with(*deepcopy(rotated))
        before = rig.current
        rig.cut(at, lost=lost, once=once)
        attempt = rig.rotate(THIRD, attempts=2)

        assert (at, calls[at], []) == (at, rig.calls[at], rig.broken)
        assert once or attempt == 2 or at == len(calls) - 1
        check_end(rig, THIRD, before)
        before = rig.current
        rig.heal()
        rig.rotate(FOURTH)
        check_end(rig, FOURTH, before)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["key", "token"])
def test_attempts_may_be_interrupted_too(rig: Rig, kind: Kind, seed: int) -> None:
    """Up to four attempts in a row can fail, and the rotation can be abandoned. A later rotation still succeeds."""
    chance = random.Random(seed)
    begin(rig, kind)
    for version in (SECOND, THIRD, FOURTH, EDITED):
        before = rig.current
        rig.secret.rotate(version)
        for _ in range(chance.randrange(5)):
            rig.cut(chance.randrange(12), lost=chance.random() < 0.5, once=chance.random() < 0.3)
            try:
                for step in STEPS:
                    rig.take(step, version)
            except ConnectorError:
                pass
        rig.heal()
        if version != rig.secret.staged("AWSCURRENT") and chance.random() < 0.5:
            rig.secret.stages[version].discard("AWSPENDING")
            continue
        rig.rotate(version)
        check_end(rig, version, before)


def test_a_key_whose_secret_was_lost_is_deleted(rig: Rig) -> None:
    """A key whose secret was lost is found by its name and deleted, because nobody can read its secret again."""
    rig.secret.rotate(SECOND)
    rig.twilio.script(Fault("line", talk), faults.RESET_AFTER_READ, Fault("line", talk))
    with pytest.raises(OutcomeUnknownError):
        rig.take("createSecret")
    (orphan,) = rig.own_keys - {KEY_SID}
    rig.rotate(SECOND)

    check_end(rig, SECOND, KEY_CONNECTION)
    assert f"DELETE /Keys/{orphan}.json" in rig.calls


def test_a_rotation_that_was_given_up_leaves_no_key(rig: Rig) -> None:
    """The next rotation deletes the key of an abandoned one, although that belongs to another version."""
    rig.secret.rotate(SECOND)
    rig.take("createSecret")
    rig.secret.stages[SECOND].clear()
    rig.rotate(THIRD)

    check_end(rig, THIRD, KEY_CONNECTION)


def test_a_rotation_that_was_given_up_leaves_no_token(token_rig: Rig) -> None:
    """The next rotation deletes an abandoned one's token, which nothing uses. Twilio allows one secondary token."""
    token_rig.secret.rotate(SECOND)
    token_rig.take("createSecret")
    token_rig.secret.stages[SECOND].clear()
    token_rig.rotate(THIRD)

    check_end(token_rig, THIRD, TOKEN_CONNECTION)
    assert 1 == token_rig.calls.count(f"DELETE {SECONDARY}")


@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "edited since"])
def test_a_promotion_that_never_came_is_made_by_the_next_rotation(token_rig: Rig, *, edited: bool) -> None:
    """A missing promotion is made by the next rotation. AWSCURRENT is then the secondary token, which must be kept."""
    token_rig.secret.rotate(SECOND)
    for step in STEPS[:3]:
        token_rig.take(step)
    with pytest.raises(ServiceUnavailableError):
        token_rig.take("finishSecret", seconds=30)
    if edited:
        token_rig.secret.write(EDITED, json.dumps(token_rig.current))
        token_rig.secret.stages[SECOND].discard("AWSPENDING")
    before = token_rig.current
    assert before["auth_token"] == token_rig.credentials.secondary
    token_rig.rotate(THIRD)

    check_end(token_rig, THIRD, before)
    assert f"DELETE {SECONDARY}" not in token_rig.calls
    assert 2 == token_rig.calls.count(f"POST {PROMOTE}")


def test_without_time_to_wait_nothing_is_promoted(token_rig: Rig) -> None:
    """Without time for the delay, no token is promoted. The new one is in use, and the next attempt promotes it."""
    token_rig.secret.rotate(SECOND)
    for step in STEPS[:3]:
        token_rig.take(step)
    with pytest.raises(ServiceUnavailableError):
        token_rig.take("finishSecret", seconds=50)

    assert ([], TOKEN, SECOND) == (
        token_rig.delays,
        token_rig.credentials.primary,
        token_rig.secret.staged("AWSCURRENT"),
    )
    assert 1 == token_rig.rotate()
    check_end(token_rig, SECOND, TOKEN_CONNECTION)


def test_a_key_that_is_gone_meanwhile_is_deleted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that somebody else deletes after it was listed does not make the rotation fail."""
    rig.rotate(SECOND)
    second = rig.current
    meanwhile(rig, monkeypatch, "GET", f"{PATH}/Keys.json", lambda: rig.credentials.keys.pop(KEY_SID, None))
    rig.rotate(THIRD)

    assert {second["api_key_sid"], rig.current["api_key_sid"]} == rig.own_keys
    assert f"DELETE /Keys/{KEY_SID}.json" in rig.calls


def test_a_token_that_is_promoted_meanwhile_is_promoted(token_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that another attempt promotes during the delay does not make the rotation fail."""

    def promote() -> None:
        if token_rig.secret.staged("AWSCURRENT") == SECOND:
            token_rig.credentials.primary, token_rig.credentials.secondary = token_rig.current["auth_token"], None

    meanwhile(token_rig, monkeypatch, "GET", f"{PATH}/Messages.json", promote)
    token_rig.rotate()

    check_end(token_rig, SECOND, TOKEN_CONNECTION)
    assert f"POST {PROMOTE}" in token_rig.calls


def test_another_refusal_of_a_token_is_told(token_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Twilio refuses a new token although the account has no secondary token, the error has Twilio's code."""
    first = token_rig.twilio._account.first

    def refuse(request: Request) -> Reply | None:
        is_refused = (request.method, request.path) == ("POST", SECONDARY)
        return Reply.json(403, {"code": 20006, "message": "Access Denied"}) if is_refused else first(request)

    monkeypatch.setattr(token_rig.twilio._account, "first", refuse)
    token_rig.secret.rotate(SECOND)
    with pytest.raises(TwilioRejectedError, match="HTTP 403, Twilio code 20006"):
        token_rig.take("createSecret")

    assert token_rig.credentials.secondary is None


def meanwhile(rig: Rig, monkeypatch: pytest.MonkeyPatch, method: str, path: str, happen: Callable[[], object]) -> None:
    """Call `happen` after each answer to this kind of request."""
    reply = rig.twilio._account.reply

    def reply_and_go_on(request: Request) -> Reply:
        answer = reply(request)
        if (request.method, request.path) == (method, path):
            happen()
        return answer

    monkeypatch.setattr(rig.twilio._account, "reply", reply_and_go_on)


# ---------------------------------------------------------------- credentials that may be in use


def test_a_secondary_token_of_the_connection_is_not_deleted(token_rig: Rig) -> None:
    """A secondary token that the connection has is not deleted, because somebody may be rotating by hand."""
    connection = TOKEN_CONNECTION | {"secondary_auth_token": "made-by-hand"}
    token_rig.have(connection)
    token_rig.credentials.secondary = "made-by-hand"
    token_rig.secret.rotate(SECOND)
    with pytest.raises(TwilioRejectedError, match="may be in use"):
        token_rig.take("createSecret")

    assert ("made-by-hand", TOKEN) == (token_rig.credentials.secondary, token_rig.credentials.primary)
    assert connection == token_rig.current


def test_the_auth_token_of_a_key_is_not_rotated(rig: Rig) -> None:
    """The rotation of an API key does not change the auth tokens, which somebody rotates by hand."""
    connection = KEY_CONNECTION | {"secondary_auth_token": "made-by-hand"}
    rig.have(connection)
    rig.credentials.secondary = "made-by-hand"
    rig.rotate()

    assert (TOKEN, "made-by-hand") == (rig.credentials.primary, rig.credentials.secondary)
    assert connection == rig.current | {"api_key_sid": KEY_SID, "api_key_secret": KEY_SECRET}


def test_a_connection_with_the_secondary_token_is_not_broken(token_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secondary token is not deleted if it is the connection's token: the connection has no other valid one."""
    token_rig.watched = False
    monkeypatch.setattr(token_rig.credentials, "primary", "of-another-application")
    token_rig.credentials.secondary = TOKEN
    token_rig.secret.rotate(SECOND)
    with pytest.raises(TwilioRejectedError, match="may be in use"):
        token_rig.take("createSecret")

    assert TOKEN == token_rig.credentials.secondary


def test_a_token_that_is_stored_twice_is_not_promoted_away(token_rig: Rig) -> None:
    """If a connection has the primary token twice, nothing is promoted: it does not have the secondary token."""
    connection = TOKEN_CONNECTION | {"secondary_auth_token": TOKEN}
    token_rig.have(connection)
    token_rig.credentials.secondary = "of-another-application"
    token_rig.secret.rotate(SECOND)
    with pytest.raises(TwilioRejectedError, match="may be in use"):
        token_rig.take("createSecret")

    assert (TOKEN, "of-another-application") == (token_rig.credentials.primary, token_rig.credentials.secondary)


def test_tokens_that_twilio_does_not_show_are_not_deleted(token_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token is deleted or promoted unless Twilio shows which one is the primary token."""
    token_rig.credentials.secondary = "unknown"
    first = token_rig.twilio._account.first

    def hide(request: Request) -> Reply | None:
        return Reply.json(200, {"auth_token": "****"}) if request.path == f"{PATH}.json" else first(request)

    monkeypatch.setattr(token_rig.twilio._account, "first", hide)
    token_rig.secret.rotate(SECOND)
    with pytest.raises(TwilioRejectedError, match="may be in use"):
        token_rig.take("createSecret")

    assert "unknown" == token_rig.credentials.secondary


@pytest.mark.parametrize("change", [{"default_from": "+15550000000"}, {"auth_token": "changed"}, {"more": 1}], ids=str)
@pytest.mark.parametrize("kind", ["key", "token"])
def test_what_somebody_changed_meanwhile_is_not_undone(rig: Rig, kind: Kind, change: dict[str, Any]) -> None:
    """If the secret is changed during a rotation, finishSecret fails: the new version is based on the old one."""
    rig.watched = False
    begin(rig, kind)
    rig.secret.rotate(SECOND)
    rig.take("createSecret")
    rig.secret.write(EDITED, json.dumps(rig.current | change))
    with pytest.raises(ConnectionInvalidError, match="was changed while it was rotated"):
        rig.take("finishSecret")

    assert EDITED == rig.secret.staged("AWSCURRENT")


def test_a_version_without_value_is_not_finished(rig: Rig) -> None:
    """The step finishSecret fails if createSecret has not stored a value yet."""
    rig.secret.rotate(SECOND)
    with pytest.raises(ConnectionInvalidError, match="createSecret comes first"):
        rig.take("finishSecret")

    assert FIRST == rig.secret.staged("AWSCURRENT")


def test_credentials_that_do_not_work_are_not_used(rig: Rig) -> None:
    """New credentials that do not work make testSecret fail, and AWSCURRENT stays on the old version."""
    rig.secret.rotate(SECOND)
    rig.take("createSecret")
    del rig.credentials.keys[json.loads(rig.secret.values[SECOND])["api_key_sid"]]
    with pytest.raises(TwilioAuthenticationError):
        rig.take("testSecret")

    assert FIRST == rig.secret.staged("AWSCURRENT")
    assert 1 == rig.calls.count("GET /Messages.json")


def test_keys_are_found_on_every_page(rig: Rig) -> None:
    """The old key is found on any page of the account's keys, which may not fit on one page."""
    many = {f"SK{number:032x}": Key("x") for number in range(1000, 1007)}
    rig.have(KEY_CONNECTION, **many)
    rig.rotate(SECOND)
    rig.credentials._max_page_size = 2
    rig.credentials.keys[KEY_SID] = rig.credentials.keys.pop(KEY_SID)
    rig.rotate(THIRD)

    assert KEY_SID not in rig.credentials.keys
    assert many.keys() <= rig.credentials.keys.keys()


def test_keys_of_another_secret_are_left_alone(rig: Rig) -> None:
    """Keys of another secret are not deleted: another stack may have a connection of this name for the same account."""
    rig.rotate(SECOND)
    keys, held = dict(rig.credentials.keys), rig.own_keys
    rig.have(KEY_CONNECTION)
    rig.credentials.keys = keys
    rig.aws_wire.rotated.clear()
    rig.secret.arn = rig.secret.arn.replace("AbCdEf", "GhIjKl")
    rig.aws_wire.rotated[rig.secret.arn] = rig.secret
    rig.credentials._made = 100
    rig.rotate(SECOND)

    assert held <= rig.own_keys


def test_the_same_key_in_two_versions_is_not_deleted(rig: Rig) -> None:
    """A key in both the current and the previous version is not deleted: somebody edited another field in between."""
    rig.secret.write(EDITED, json.dumps(KEY_CONNECTION))
    rig.rotate()

    check_end(rig, SECOND, KEY_CONNECTION)


def test_a_previous_version_that_is_no_connection_is_passed_over(rig: Rig) -> None:
    """A previous version that is not a valid connection is ignored, because it has no key to delete."""
    rig.secret.values[FIRST] = "not a connection"
    rig.secret.write(EDITED, json.dumps(KEY_CONNECTION))
    rig.rotate()

    assert {KEY_SID, rig.current["api_key_sid"]} == rig.own_keys


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("token", [None, "old"], ids=["none", "refused"])
def test_a_standard_key_cannot_be_rotated_without_the_auth_token(rig: Rig, token: str | None) -> None:
    """A standard key cannot be rotated without a valid auth token. The error says so, and nothing is changed."""
    rig.watched = False
    rig.secret.values[FIRST] = json.dumps({**KEY_CONNECTION, "auth_token": token})
    rig.secret.rotate(SECOND)
    with pytest.raises(ConnectionInvalidError, match=r"store the right auth_token in it \(HTTP 401, Twilio"):
        rig.take("createSecret")

    assert {KEY_SID} == rig.own_keys
    assert {"GET /Keys.json"} == set(rig.calls) & {"GET /Keys.json", "POST /Keys.json"}


def test_a_main_key_is_rotated_once(rig: Rig) -> None:
    """A main key can be rotated once: it may make keys, but the keys that it makes may not."""
    rig.watched = False
    connection = {name: value for name, value in KEY_CONNECTION.items() if name != "auth_token"}
    rig.have(connection, **{KEY_SID: Key(KEY_SECRET, is_main=True)})
    rig.rotate()

    assert {KEY_SID, rig.current["api_key_sid"]} == rig.own_keys
    rig.secret.rotate(THIRD)
    with pytest.raises(ConnectionInvalidError, match="store the right auth_token"):
        rig.take("createSecret", THIRD)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"ClientRequestToken": FIRST}, None),
        ({"ClientRequestToken": FOURTH}, "ClientRequestToken: names a version without the label AWSPENDING"),
        ({"ClientRequestToken": THIRD}, "ClientRequestToken: names a version without the label AWSPENDING"),
        ({"Step": "deleteSecret"}, "must be Secrets Manager's event"),
        ({"SecretId": 5}, "must be Secrets Manager's event"),
        ({"Step": None}, "must be Secrets Manager's event"),
    ],
    ids=str,
)
def test_another_event_is_refused(rig: Rig, event: dict[str, Any], message: str | None) -> None:
    """An event that is not a step of the current rotation is refused. One for the version in use is ignored."""
    rig.secret.stages[THIRD] = {"AWSPREVIOUS"}
    rig.secret.rotate(SECOND)
    given = {"Step": "createSecret", "SecretId": rig.secret.arn, "ClientRequestToken": SECOND} | event
    if message is None:
        rotate_connection.handler(given, Context(SECONDS))
    else:
        with pytest.raises(InvalidInputError, match=message):
            rotate_connection.handler(given, Context(SECONDS))

    assert [] == rig.twilio.requests
    assert {"DescribeSecret"} >= set(rig.calls)


@pytest.mark.parametrize("event", [{}, [], None, "createSecret"], ids=str)
@pytest.mark.usefixtures("rig")
def test_no_event_is_refused(event: Any) -> None:
    """An input of any other shape is refused."""
    with pytest.raises(InvalidInputError):
        rotate_connection.handler(event, Context(SECONDS))


def test_another_secret_is_refused(rig: Rig) -> None:
    """A secret whose name does not begin with the connections' prefix is refused."""
    rig.secret.name = "database/default"
    rig.secret.rotate(SECOND)
    with pytest.raises(InvalidInputError, match="its name does not begin with twilio/"):
        rig.take("createSecret")


def test_a_rotation_that_was_cancelled_is_refused(rig: Rig) -> None:
    """A step of a cancelled rotation is refused, although CancelRotateSecret leaves the version unchanged."""
    rig.secret.rotate(SECOND)
    rig.secret.rotation_enabled = False
    with pytest.raises(InvalidInputError, match="rotation is not enabled"):
        rig.take("createSecret")


@pytest.mark.parametrize("value", ["", "{", "[]", "{}", '{"account_sid": "AC"}', '{"password": "x"}'])
def test_a_secret_that_is_no_connection_is_refused(rig: Rig, value: str) -> None:
    """A secret that is not a valid connection is refused before a request to Twilio."""
    rig.watched = False
    rig.secret.values[FIRST] = value
    rig.secret.rotate(SECOND)
    with pytest.raises(ConnectionInvalidError, match="connection default: "):
        rig.take("createSecret")

    assert [] == rig.twilio.requests


@pytest.mark.parametrize(
    ("answer", "message"), [({"SecretBinary": "eA=="}, "binary"), ({}, "the secret has no value")], ids=str
)
def test_a_secret_without_text_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, answer: dict[str, str], message: str
) -> None:
    """A secret that is binary or empty is refused, because a connection is JSON text."""
    rig.secret.rotate(SECOND)
    first = rig.secret.get
    monkeypatch.setattr(rig.secret, "get", lambda body: (200, answer) if body["VersionId"] == FIRST else first(body))
    with pytest.raises(ConnectionInvalidError, match=message):
        rig.take("createSecret")

    assert [] == rig.twilio.requests


@pytest.mark.parametrize(
    "operation", ["DescribeSecret", "GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"]
)
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ((400, "AccessDeniedException"), ConnectionNotFoundError),
        ((500, "InternalServiceError"), ServiceUnavailableError),
        ((400, "ThrottlingException"), ServiceUnavailableError),
    ],
    ids=str,
)
def test_what_aws_refuses_is_told(
    rig: Rig, operation: str, failure: tuple[int, str], error: type[ConnectorError]
) -> None:
    """If AWS refuses a call, the error has AWS's code. The rotation succeeds once AWS answers."""
    rig.aws_wire.failures[operation] = [failure] * 2
    with pytest.raises(error, match=failure[1]):
        rig.rotate()
    rig.aws_wire.failures.clear()
    rig.rotate()

    check_end(rig, SECOND, KEY_CONNECTION)


def test_a_secret_that_is_gone_is_told(rig: Rig) -> None:
    """If the secret was deleted in the meantime, the error has AWS's code."""
    rig.aws_wire.rotated.clear()
    with pytest.raises(ConnectionNotFoundError, match="ResourceNotFoundException"):
        rig.take("createSecret")


def test_an_answer_without_secret_is_in_doubt(rig: Rig) -> None:
    """An answer without a key's secret is an unknown outcome. A key may have been made; the next attempt deletes it."""
    rig.secret.rotate(SECOND)
    strange = faults.answer(b'{"sid": "SK00000000000000000000000000000009"}')
    rig.twilio.script(Fault("line", talk), strange, Fault("line", talk))
    with pytest.raises(OutcomeUnknownError):
        rig.take("createSecret")
    rig.rotate(SECOND)

    check_end(rig, SECOND, KEY_CONNECTION)


# ---------------------------------------------------------------- logs and errors


SECRETS = [TOKEN, KEY_SECRET, "not-a-key-secret", "not-a-token"]


@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["key", "token"])
def test_nothing_secret_is_told(
    rig: Rig, kind: Kind, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, lost: bool
) -> None:
    """No secret is in a log or in an error after the failure of any call, even with debug logs."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
    telemetry.logger._logger.setLevel("DEBUG")
    told: list[str] = []
    for at in range(14):
        begin(rig, kind)
        rig.secret.rotate(SECOND)
        rig.cut(at, lost=lost, once=False)
        try:
            for step in STEPS:
                rig.take(step)
        except ConnectorError as error:
            told += [str(error), repr(error), repr(error.__cause__), str(error.problem())]
        rig.heal()
    telemetry.logger._logger.setLevel("INFO")
    text = "".join([*told, *capfd.readouterr()])

    assert told
    assert [] == [secret for secret in SECRETS if secret in text]


def test_a_failure_is_one_line(rig: Rig, capsys: pytest.CaptureFixture[str], log: Log) -> None:
    """A failure is logged as one line with the function, the connection, the step and Twilio's code."""
    rig.secret.rotate(SECOND)
    rig.twilio.script(faults.status(403, twilio_code=70051))
    with pytest.raises(ConnectionInvalidError):
        rig.take("createSecret")

    (line,) = log()
    assert ("rotate_connection", "default", "createSecret", 70051) == tuple(
        line[name] for name in ("function", "connection", "step", "twilio_code")
    )
    assert '"TwilioErrors"' in capsys.readouterr().out


def test_a_bug_tells_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is reported as an internal error, because its text may contain a secret."""

    def fail(*_: object) -> None:
        raise ValueError(TOKEN)

    monkeypatch.setattr(steps, "TwilioList", fail)
    rig.secret.rotate(SECOND)
    with pytest.raises(ConnectorError, match="internal error") as raised:
        rig.take("createSecret")

    assert TOKEN not in str(raised.value)


def test_twilios_hosts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are made and promoted at one host for all regions. All other requests go to the region's host."""
    rig.watched = False
    region = {"region": "ie1"}
    rig.have(TOKEN_CONNECTION | region)
    rig.secret.rotate(SECOND)
    monkeypatch.setenv("TWILIO_API_URL", "")
    accounts, messages = "https://accounts.twilio.com", f"https://api.dublin.ie1.twilio.com{PATH}/Messages.json"
    with responses.RequestsMock() as wire:
        wire.add_passthru(rig.aws_wire.url)
        wire.post(f"{accounts}{SECONDARY}", json={"secondary_auth_token": "not-a-token-1"}, status=201)
        wire.get(messages, json={"messages": []})
        wire.post(f"{accounts}{PROMOTE}", json={"auth_token": "not-a-token-1"})
        for step in STEPS:
            rig.take(step)

    assert "not-a-token-1" == rig.current["auth_token"]
