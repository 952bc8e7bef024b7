"""Are addresses read as people write them, and never guessed?"""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector import phone

PLAIN = [
    "+15005550006",
    "+15551234567",
    "+442079460018",
    "+12",
    "+123456789012345",
    "123",
    "12345",
    "123456",
    "whatsapp:+15558675309",
    "messenger:1234567890",
    "rcs:brand_agent",
    "sip:name@example.com",
]


@pytest.mark.parametrize("address", PLAIN)
@pytest.mark.parametrize("country", ["US", ""], ids=["US", "no country"])
def test_addresses_that_twilio_knows_pass_untouched(address: str, country: str) -> None:
    """E.164, short codes and channel addresses need no country, for both directions."""
    assert (address, address) == (phone.recipient(address, country), phone.sender(address, country))


@pytest.mark.parametrize(
    ("number", "country", "expected"),
    [
        ("(202) 555-0143", "US", "+12025550143"),
        ("202-555-0143", "US", "+12025550143"),
        ("2025550143", "US", "+12025550143"),
        ("1 202 555 0143", "US", "+12025550143"),
        ("020 7946 0018", "GB", "+442079460018"),
        ("(020) 7946 0018", "GB", "+442079460018"),
        (" +1 202-555-0143", "US", "+12025550143"),
        ("+15005550006\n", "", "+15005550006"),
        ("+44 20 7946 0018", "US", "+442079460018"),
        ("+44 (0)20 7946 0018", "", "+442079460018"),
    ],
)
def test_a_national_number_is_read_in_the_stacks_country(number: str, country: str, expected: str) -> None:
    """Spaces, dashes and brackets are for people."""
    assert (expected, expected) == (phone.recipient(number, country), phone.sender(number, country))


@pytest.mark.parametrize(
    ("number", "country", "message"),
    [
        ("(202) 555-0143", "", "no DefaultCountry"),
        ("(202) 555-0143", "XX", "DefaultCountry XX has no numbering plan"),
        ("020 7946 0018", "US", "not a valid phone number in US"),
        ("+44 20 7946", "US", "is not a valid phone number$"),
        ("(202) 555-0143", "GB", "not a valid phone number in GB"),
        ("(555) 123-4567", "US", "not a valid phone number in US"),
        ("011 44 20 7946 0018", "US", "not a valid phone number in US"),
        ("(202) 555-0143 ext. 5", "US", "must be a phone number"),
        ("650-253-OOOO", "US", "must be a phone number"),
        ("call 650 253 0000", "US", "must be a phone number"),
        ("6502530000 /x 5", "US", "must be a phone number"),
        ("2530000;phone-context=+1650", "US", "must be a phone number"),
        ("\x00+16502530000", "US", "must be a phone number"),
        ("12", "US", "must be a phone number|not a valid"),
        ("1234567", "US", "not a valid phone number in US"),
        ("", "US", "must be a phone number"),
        (" ", "US", "must be a phone number"),
        ("+", "US", "must be a phone number"),
        ("+0123456789", "US", "must be a phone number|not a valid"),
        ("+1234567890123456", "US", "must be a phone number|not a valid"),
        ("nobody", "US", "must be a phone number"),
        ("name@example.com", "US", "must be a phone number"),
        ("WhatsApp:+15558675309", "US", "must be a phone number|not a valid"),
        ("whatsapp:", "US", "must be a phone number"),
        ("whatsapp: +15558675309", "US", "must be a phone number|not a valid"),
        ("whatsapp:+15558675309 ", "US", "must be a phone number|not a valid"),
        ("whatsapp:+1555\n8675309", "US", "must be a phone number|not a valid"),
        ("0" * 1000, "US", "must be a phone number"),
    ],
)
def test_anything_else_is_refused(number: str, country: str, message: str) -> None:
    """A country is never guessed, and the message does not repeat the number."""
    with pytest.raises(ValueError, match=message) as refusal:
        phone.recipient(number, country)

    assert not number.strip() or number.strip() not in str(refusal.value)


@pytest.mark.parametrize("name", ["Shop", "A", "My Shop 24", "1Shop", "a+b_c-d&e", "1234567890x"])
def test_a_sender_may_be_a_name(name: str) -> None:
    """Up to 11 characters of the alphabet that Twilio allows, with a letter among them."""
    assert name == phone.sender(name, "US")


@pytest.mark.parametrize("name", ["TwelveLetter", " Shop", "Shop ", "Café", "a.b", "a\n", "Shop!", "-+ _&"])
def test_other_names_are_refused(name: str) -> None:
    """Too long, other characters, no letter."""
    with pytest.raises(ValueError, match=r"must be a phone number|not a valid phone number"):
        phone.sender(name, "US")


def test_a_recipient_has_no_name() -> None:
    """Twilio sends to no alphanumeric address."""
    with pytest.raises(ValueError, match="must be a phone number"):
        phone.recipient("Shop", "US")


@given(st.text(max_size=40) | st.from_regex(r"\A\+?[0-9 ()./x#;=-]{1,30}\Z"), st.sampled_from(["US", "GB", ""]))
def test_what_comes_out_can_be_sent_to(address: str, country: str) -> None:
    """Every text is an address or a ValueError, and an address stays the same when it is read again."""
    try:
        read = phone.recipient(address, country)
    except ValueError:
        return

    assert read == phone.recipient(read, "")


def test_few_invocations_load_the_numbering_plans() -> None:
    """They are heavy, and E.164 needs none."""
    code = (
        "import sys; from twilio_connector import phone; phone.sender('+15005550006', '');"
        " sys.exit('phonenumbers' in sys.modules)"
    )
    path = str(phone.__file__).rpartition("/twilio_connector/")[0]

    assert 0 == subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode
