"""The load under which credentials are rotated."""

from collections import Counter

import pytest
import requests

from tests.torture.rotation import Twilio, under_load
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

KEY = ("SK" + "0" * 32, "secret")


def test_rotations_happen_under_load() -> None:
    """Calls are made before, between and after the rotations; what refuses one is told."""
    rotated: list[int] = []
    work = [lambda: "refused" if len(rotated) == 1 else None] * 60

    outcomes = under_load(work, [lambda: rotated.append(1)] * 2, every=0.2, callers=4)

    assert 60 == len(outcomes)
    assert {0, 1, 2} == set(Counter(outcome.rotations for outcome in outcomes))
    assert {1} <= {outcome.rotations for outcome in outcomes if outcome.refused} <= {0, 1}


def test_a_rotation_that_fails_is_told() -> None:
    """A load without its rotations proves nothing."""

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        under_load([lambda: None] * 2, [fail], every=0, callers=1)


def test_twilio_takes_what_is_valid_now() -> None:
    """Keys come and go; of two tokens both are taken, until one is promoted."""
    with Twilio(ACCOUNT_SID, AUTH_TOKEN, KEY) as twilio:

        def status(user: str, password: str) -> int:
            url = f"{twilio.url}/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"
            return requests.post(url, data={"Body": "Hi"}, auth=(user, password), timeout=5).status_code

        def token(value: str) -> int:
            return status(ACCOUNT_SID, value)

        assert (201, 401, 201, 401) == (status(*KEY), status(KEY[0], "x"), token(AUTH_TOKEN), token("new"))
        twilio.secondary = "new"
        assert (201, 201) == (token(AUTH_TOKEN), token("new"))
        twilio.promote()
        twilio.keys.clear()
        assert (401, 201, 401) == (token(AUTH_TOKEN), token("new"), status(*KEY))
        with pytest.raises(LookupError):
            twilio.promote()
