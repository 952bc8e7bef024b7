"""The settings are read from the environment variables that the template sets."""

import pytest
from twilio_connector.errors import InternalError
from twilio_connector.settings import Settings, variable

NAMES = ["CONNECTION_PREFIX", "DEFAULT_CONNECTION", "DEFAULT_COUNTRY", "TWILIO_API_URL"]


def test_settings_are_read_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are read at call time, so that the next call uses a changed value."""
    monkeypatch.setenv("DEFAULT_COUNTRY", "GB")

    assert Settings("twilio/", "default", "GB", "") == Settings.from_env()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The error for a missing variable names the variable and the remedy."""
    monkeypatch.delenv(name)

    with pytest.raises(InternalError, match=rf"environment variable {name}: .* deploy"):
        Settings.from_env()


def test_any_variable_can_be_asked_for() -> None:
    """`variable` returns any environment variable, also one that `Settings` does not have."""
    assert "bus" == variable("EVENT_BUS_NAME")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://twilio.example",
        "https://twilio.example:8443",
        "http://127.0.0.1:4000",
        "http://127.0.0.1",
        "http://localhost:4000",
        "http://[::1]:4000",
    ],
)
def test_a_test_url_is_https_or_loopback(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """TWILIO_API_URL may be empty, an HTTPS host or a loopback address, because its host receives the credentials."""
    monkeypatch.setenv("TWILIO_API_URL", url)

    assert url == Settings.from_env().twilio_api_url


@pytest.mark.parametrize(
    "url",
    [
        "http://twilio.example",
        "http://127.0.0.1.example",
        "http://127.0.0.1:80@elsewhere.example",
        "http://localhost.example:80",
        "http://localhost:",
        "http://localhost:4000/",
        "https://user@twilio.example",
        "https://twilio.example/path",
        "https://twilio.example?query",
        "https://twilio.example#",
        "https://twilio.example\\@elsewhere.example",
        "https://twilio.example\n",
        "https://",
        "HTTPS://twilio.example",
        "ftp://127.0.0.1",
        "127.0.0.1:4000",
        " ",
    ],
)
def test_any_other_test_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Any other TWILIO_API_URL is refused with an error that names the variable."""
    monkeypatch.setenv("TWILIO_API_URL", url)

    with pytest.raises(InternalError, match="TWILIO_API_URL: must be empty, https://host or a loopback"):
        Settings.from_env()
