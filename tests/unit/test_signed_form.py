"""Is a signed form believed only where its text can be read in one way?"""

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.signature import signed_text
from twilio_connector.signed_form import Kind, doubt, kind

ACCOUNT = "AC" + "0" * 32
MESSAGE_SID = "SM" + "0" * 32
CALL_SID = "CA" + "0" * 32
ERROR_SID = "NO" + "0" * 32
URL = "https://example.com/webhook"

type Form = dict[str, str]

SMS: Form = {
    "AccountSid": ACCOUNT,
    "ApiVersion": "2010-04-01",
    "Body": "Hello & welcome, + 100% é👍",
    "From": "+15551234567",
    "FromCity": "SAN FRANCISCO",
    "FromCountry": "US",
    "FromState": "CA",
    "FromZip": "94105",
    "MessageSid": MESSAGE_SID,
    "MessagingServiceSid": "MG" + "0" * 32,
    "NumMedia": "0",
    "NumSegments": "1",
    "SmsMessageSid": MESSAGE_SID,
    "SmsSid": MESSAGE_SID,
    "SmsStatus": "received",
    "To": "+15005550006",
    "ToCity": "",
    "ToCountry": "US",
    "ToState": "",
    "ToZip": "",
}
MMS = SMS | {"MediaContentType0": "image/jpeg", "MediaUrl0": "https://api.twilio.com/media", "NumMedia": "1"}
WHATSAPP = SMS | {"From": "whatsapp:+15558675309", "ProfileName": "Ada", "WaId": "15558675309"}
OPT_OUT = SMS | {"OptOutType": "STOP", "Body": "STOP"}
STATUS: Form = {
    "AccountSid": ACCOUNT,
    "ApiVersion": "2010-04-01",
    "ErrorCode": "30006",
    "From": "+15005550006",
    "MessageSid": MESSAGE_SID,
    "MessageStatus": "undelivered",
    "RawDlrDoneDate": "2601311200",
    "SmsSid": MESSAGE_SID,
    "SmsStatus": "undelivered",
    "To": "+15551234567",
}
CALL: Form = {
    "AccountSid": ACCOUNT,
    "ApiVersion": "2010-04-01",
    "CallSid": CALL_SID,
    "CallStatus": "ringing",
    "Called": "+15005550006",
    "CalledCity": "",
    "Caller": "+15551234567",
    "Direction": "inbound",
    "From": "+15551234567",
    "To": "+15005550006",
}
ERROR: Form = {
    "AccountSid": ACCOUNT,
    "Level": "ERROR",
    "ParentAccountSid": "AC" + "1" * 32,
    "Payload": '{"resource_sid": "SM1", "error_code": "11200"}',
    "PayloadType": "application/json",
    "Sid": ERROR_SID,
    "Timestamp": "2026-01-31T12:00:00Z",
}
OTHER: Form = {"AccountSid": ACCOUNT, "ServiceSid": "VA" + "0" * 32, "Status": "approved"}

GENUINE = {
    "sms": (SMS, Kind.MESSAGE),
    "mms": (MMS, Kind.MESSAGE),
    "whatsapp": (WHATSAPP, Kind.MESSAGE),
    "opt-out": (OPT_OUT, Kind.MESSAGE),
    "short code": (SMS | {"From": "12345", "To": "123456"}, Kind.MESSAGE),
    "name as sender": (STATUS | {"From": "Shop"}, Kind.MESSAGE),
    "no sender": (STATUS | {"From": ""}, Kind.MESSAGE),
    "another channel": (STATUS | {"From": "messenger:12", "To": "messenger:34"}, Kind.MESSAGE),
    "empty body": (SMS | {"Body": ""}, Kind.MESSAGE),
    "status": (STATUS, Kind.MESSAGE),
    "new name": (STATUS | {"NewName": "new"}, Kind.MESSAGE),
    "call": (CALL, Kind.CALL),
    "error": (ERROR, Kind.ERROR),
    "other": (OTHER, Kind.OTHER),
}
genuine = pytest.mark.parametrize(("form", "about"), GENUINE.values(), ids=GENUINE)


def doubts(form: Mapping[str, str | list[str]], about: Kind = Kind.MESSAGE, query: str | None = "") -> str | None:
    """Return why a form is not believed."""
    fields = {name: [value] if isinstance(value, str) else value for name, value in form.items()}
    return doubt(fields, about, query)


def told(form: Form, url: str = URL) -> Kind:
    """Return the kind of a form that was signed for a URL."""
    fields = {name: [value] for name, value in form.items()}
    return kind(fields, signed_text(url, fields))


@genuine
@pytest.mark.parametrize("query", [None, "", "tenant=1"], ids=["GET", "POST", "POST with query"])
def test_what_twilio_sends_is_believed(form: Form, about: Kind, query: str | None) -> None:
    """Each kind, however it came."""
    assert (about, None) == (told(form), doubts(form, about, query))


# Kinds


@pytest.mark.parametrize(
    ("form", "about"),
    [
        ({"MessageSid": "x"}, Kind.MESSAGE),
        ({"SmsSid": "x"}, Kind.MESSAGE),
        ({"MessageStatus": "x"}, Kind.MESSAGE),
        ({"SmsStatus": "x"}, Kind.MESSAGE),
        ({"CallSid": "x"}, Kind.CALL),
        ({"CallSid": "x", "SmsSid": "x"}, Kind.MESSAGE),
        ({"Sid": "x"}, Kind.OTHER),
        ({"Body": "Hello"}, Kind.OTHER),
        ({}, Kind.OTHER),
    ],
)
def test_a_name_tells_the_kind(form: Form, about: Kind) -> None:
    """Also where its value is malformed, which is for `doubt` to say."""
    assert about == told(form)


@pytest.mark.parametrize(
    ("hidden", "about"),
    [
        (f"MessageSid{MESSAGE_SID}", Kind.MESSAGE),
        (f"SmsSidMM{'f' * 32}", Kind.MESSAGE),
        (f"CallSid{CALL_SID}", Kind.CALL),
        (f"Sid{ERROR_SID}", Kind.ERROR),
    ],
    ids=["MessageSid", "SmsSid", "CallSid", "Sid"],
)
@pytest.mark.parametrize("place", ["value", "name", "url"])
def test_what_tells_the_kind_cannot_be_hidden(hidden: str, about: Kind, place: str) -> None:
    """A message is not passed off as something else that is checked less."""
    form = {"value": {"X": f"a{hidden}b"}, "name": {f"a{hidden}b": ""}, "url": {}}[place]

    assert about == told(form, f"{URL}?{hidden}" if place == "url" else URL)


# What is required


@genuine
def test_a_form_without_a_required_name_is_not_believed(form: Form, about: Kind) -> None:
    """Those that make it up, each for its own."""
    required = {
        Kind.MESSAGE: {"AccountSid", "From", "MessageSid", "To"},
        Kind.CALL: {"AccountSid", "CallSid"},
        Kind.ERROR: {"AccountSid", "Level", "Payload", "PayloadType", "Sid"},
        Kind.OTHER: {"AccountSid"},
    }[about]
    missing = {name: doubts({n: v for n, v in form.items() if n != name}, about, None) for name in form}

    assert {name: f"{name} is missing" for name in required} == {
        name: reason for name, reason in missing.items() if reason
    }


@genuine
@pytest.mark.parametrize("query", [None, ""], ids=["GET", "POST"])
def test_a_name_that_repeats_is_not_believed(form: Form, about: Kind, query: str | None) -> None:
    """Who reads the first and who reads the last would see different things."""
    known = [name for name in form if name != "NewName" and (about is not Kind.OTHER or name == "AccountSid")]

    assert {name: f"{name} is there more than once" for name in known} == {
        name: doubts(form | {name: [form[name], form[name]]}, about, query) for name in known
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AccountSid", "AC0"),
        ("AccountSid", ACCOUNT + "0"),
        ("AccountSid", ACCOUNT + "\n"),
        ("AccountSid", "AC" + "g" * 32),
        ("ApiVersion", "latest"),
        ("MessageSid", "CA" + "0" * 32),
        ("MessageSid", ""),
        ("MessageStatus", "Delivered"),
        ("MessagingServiceSid", "MG"),
        ("NumMedia", "two"),
        ("NumSegments", "1 "),
        ("OptOutType", "stop"),
        ("SmsSid", MESSAGE_SID[:-1]),
        ("SmsStatus", "sentTo"),
        ("WaId", "+1"),
    ],
)
def test_a_malformed_value_is_not_believed(name: str, value: str) -> None:
    """Its format is what shows where it ends."""
    assert f"{name} is malformed" == doubts(SMS | {"MessageStatus": "sent", name: value})


@pytest.mark.parametrize("name", ["MessageSid", "SmsSid", "SmsMessageSid"])
def test_sids_that_differ_are_not_believed(name: str) -> None:
    """They are the same message's."""
    assert "MessageSid and SmsSid differ" == doubts(SMS | {name: "SM" + "f" * 32}, query=None)


# What can be read in another way


@pytest.mark.parametrize("query", ["AccountSid=1", "a=bAccountSidc", f"x=AccountSid{ACCOUNT}"])
def test_a_query_with_the_account_is_not_believed(query: str) -> None:
    """The form may begin earlier, in the URL."""
    assert "something stands before AccountSid" == doubts(SMS, query=query)


def test_a_name_before_the_account_is_not_believed() -> None:
    """It may have been cut off the URL."""
    assert "something stands before AccountSid" == doubts(SMS | {"AAA": ""})


@pytest.mark.parametrize(
    "more",
    [{"newName": "x"}, {"New Name": "x"}, {"NewName": ["x", "y"]}, {"Nëw": "x"}, {"New\n": "x"}],
    ids=["lower case", "space", "repeated", "accent", "newline"],
)
def test_a_name_that_is_not_twilios_is_not_believed(more: Mapping[str, str | list[str]]) -> None:
    """New ones are, if they look like Twilio's."""
    assert "a name is not one of Twilio's" == doubts({**STATUS, **more})


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"From": "whatsapp:+15558675309", "Body": "Hello ErrorCode30006"}, "Body"),
        ({"From": "whatsapp:+15558675309", "Body": "ErrorMessage"}, "Body"),
        ({"From": "whatsapp:+15558675309", "Body": "ButtonText"}, "Body"),
        ({"Body": "ErrorCode11200ErrorUrlhttps://example.com"}, "Body"),
        ({"FromCity": "NYFromCountryUS"}, "FromCity"),
        ({"From": "whatsapp:+15558675309", "ToZip": "94105WaId15558675309"}, "ToZip"),
        ({"From": "ShopFromCityX"}, "From"),
    ],
)
def test_a_text_that_may_hold_a_parameter_is_not_believed(form: Form, text: str) -> None:
    """One that would stand between the text's name and the next."""
    without = {name: value for name, value in SMS.items() if not name.startswith("From") or name in {"From", text}}

    assert str(doubts(without | form)).startswith("a text may hold ")


@pytest.mark.parametrize(
    "body",
    [
        "To be or not to be",
        "Body",
        "Greetings From Paris",
        f"AccountSid{ACCOUNT}",
        "MessageStatusdelivered",
        "ErrorCode",
        "ErrorCode30006",
        "Yes ButtonTextYes ButtonPayload1",
        "Call From+15550001111",
        "Now FromCity to ToZip94105, Label it",
    ],
)
def test_a_text_may_name_what_cannot_stand_there(body: str) -> None:
    """Names are signed in order, and people write all kinds of words."""
    assert None is doubts(SMS | {"Body": body})


@pytest.mark.parametrize(("text", "believed"), [("ErrorCode12Apples", True), ("ErrorCode12Fruits", False)])
def test_an_unknown_name_that_a_text_holds_stands_in_order(text: str, *, believed: bool) -> None:
    """One that would be signed before what it follows is none."""
    assert believed is (doubts(WHATSAPP | {"Body": text}) is None)


def test_an_unknown_name_after_a_text_is_not_believed() -> None:
    """It may be the end of the text."""
    assert "a parameter that is not known may be cut out of the text before it" == doubts(SMS | {"Cc": "x"})


def test_a_get_is_not_read_in_another_way() -> None:
    """There everything is in the URL, with its separators."""
    assert None is doubts(SMS | {"Body": "ErrorMessage", "aaa": "", "AAA": ""}, query=None)


# There is no other reading


def twins(form: Form) -> Iterator[Form]:
    """Yield the forms whose text is the same, but for two neighbours, which are cut into one or two others."""
    names = sorted(form)
    for before, left, right, after in zip(["", *names], names, names[1:], [*names[2:], "\U0010ffff"], strict=False):
        rest = {name: value for name, value in form.items() if name not in {left, right}}
        text = left + form[left] + right + form[right]
        ends = range(1, len(text) + 1)
        for name_end in (end for end in ends if before < text[:end] < after):
            name = text[:name_end]
            yield rest | {name: text[name_end:]}
            for start, end in combinations_with_replacement(ends[name_end - 1 :], 2):
                if name < text[start:end] < after:
                    yield rest | {name: text[name_end:start], text[start:end]: text[end:]}


def known(form: Form) -> Form:
    """Return the parameters whose names Twilio documents."""
    return {name: value for name, value in form.items() if name in {*MMS, *STATUS, *CALL, *ERROR}}


SHORT: Form = {"AccountSid": ACCOUNT, "Body": "Hi", "From": "+15551234567", "MessageSid": MESSAGE_SID, "To": "12345"}
ALONE = {
    "words": SHORT | {"Body": "Greetings From Paris to AccountSid"},
    "own name": SHORT | {"Body": "Body"},
    "no space": SHORT | {"Body": "Hi", "From": "Shop", "To": "messenger:12"},
    "empty": SHORT | {"Body": "", "From": ""},
    "sms": SMS,
    "mms": MMS,
    "status": STATUS,
    "name as sender": STATUS | {"From": "Shop"},
    "new name": STATUS | {"NewName": "NewToo"},
    "call": CALL,
    "error": ERROR,
}


@pytest.mark.parametrize("form", ALONE.values(), ids=ALONE)
def test_a_form_that_is_believed_has_no_twin(form: Form) -> None:
    """Of all the ways to cut the text of two neighbours, only the genuine one is believed.

    What is left open is where a new name of Twilio's ends and its value begins.
    """
    signed = signed_text(URL, {name: [value] for name, value in form.items()})
    believed = []
    for twin in twins(form):
        fields = {name: [value] for name, value in twin.items()}
        if known(twin) != known(form) and not doubt(fields, kind(fields, signed), ""):
            believed.append(twin.items() - form.items())

    assert None is doubts(form, told(form))
    assert [] == believed


@given(
    st.dictionaries(
        st.sampled_from([*SMS, *CALL, *ERROR]) | st.text(max_size=5),
        st.lists(st.text(max_size=5) | st.text(st.characters(categories=["Cs"])), min_size=1, max_size=2),
    ),
    st.none() | st.text(),
    st.sampled_from(Kind),
)
def test_judging_a_form_never_raises(fields: dict[str, list[str]], query: str | None, about: Kind) -> None:
    """It is a reason or None, whatever arrives."""
    assert isinstance(doubt(fields, about, query), str | None)
    assert kind(fields, signed_text(URL, fields)) in Kind
