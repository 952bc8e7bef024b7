"""Addresses are read in the forms that people write, and are never guessed."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.validation import phone_numbers

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
    """E.164, short codes and channel addresses pass unchanged as recipient and as sender, without a country."""
    assert (address, address) == (phone_numbers.recipient(address, country), phone_numbers.sender(address, country))


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
        ("011 44 20 7946 0018", "US", "+442079460018"),
    ],
)
def test_a_national_number_is_read_in_the_stacks_country(number: str, country: str, expected: str) -> None:
    """A national number is read in the stack's country. Spaces, dashes and brackets are ignored."""
    assert (expected, expected) == (phone_numbers.recipient(number, country), phone_numbers.sender(number, country))


@pytest.mark.parametrize(
    ("number", "country", "message"),
    [
        ("(202) 555-0143", "", "no DefaultCountry"),
        ("(202) 555-0143", "XX", "DefaultCountry XX has no numbering plan"),
        ("020 7946 0018", "US", "not a valid phone number in US"),
        ("+44 20 7946", "US", "is not a valid phone number; check it"),
        ("(202) 555-0143", "GB", "not a valid phone number in GB"),
        ("(555) 123-4567", "US", "not a valid phone number in US"),
        ("(415) 555", "US", "not a valid phone number in US"),
        ("(415) 55", "US", "not a valid phone number in US"),
        ("0044 20 7946 0018", "US", "not a valid phone number in US"),
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
        ("+", "US", "must be a phone number|not a valid"),
        ("+0123456789", "US", "must be a phone number|not a valid"),
        ("+1234567890123456", "US", "must be a phone number|not a valid"),
        ("nobody", "US", "must be a phone number"),
        ("name@example.com", "US", "must be a phone number"),
        ("whatsapp:", "US", "must be a phone number"),
        ("whatsapp:+1555\n8675309", "US", "must be a phone number|not a valid"),
        ("0" * 1000, "US", "is too long: an address has at most 256 characters"),
    ],
)
def test_anything_else_is_refused(number: str, country: str, message: str) -> None:
    """Any other text is refused: a country is never guessed, and the error does not repeat the number."""
    with pytest.raises(ValueError, match=message) as refusal:
        phone_numbers.recipient(number, country)

    assert not number.strip() or number.strip() not in str(refusal.value)


@pytest.mark.parametrize("name", ["Shop", "A", "My Shop 24", "1Shop", "a+b_c-d&e", "1234567890x"])
def test_a_sender_may_be_a_name(name: str) -> None:
    """A sender may be a name: up to 11 characters that Twilio allows, with a letter among them."""
    assert name == phone_numbers.sender(name, "US")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TwelveLetter", "too long for a sender name, which has at most 11 characters"),
        ("1-800-FLOWERS", "too long for a sender name, which has at most 11 characters"),
        (" Shop", "or a sender name of letters A to Z"),
        ("Shop ", "or a sender name of letters A to Z"),
        ("Café", "or a sender name of letters A to Z"),
        ("Müller 24", "or a sender name of letters A to Z"),
        ("Ｓｈｏｐ", "or a sender name of letters A to Z"),
        ("\u2068Shop\u2069", "or a sender name of letters A to Z"),
        ("a.b", "or a sender name of letters A to Z"),
        ("a\n", "or a sender name of letters A to Z"),
        ("Shop!", "or a sender name of letters A to Z"),
        ("-+ _&", "must be a phone number"),
        ("MG" + "0" * 32, "which is given as messaging_service_sid"),
        ("x" * 257, "an address has at most 256 characters"),
        ("+1 415 555 2671 ext 5", "letters and extensions are not supported"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    """Other names are refused with the reason: too long, other characters, no letter, or a SID."""
    with pytest.raises(ValueError, match=message):
        phone_numbers.sender(name, "US")


def test_a_recipient_has_no_name() -> None:
    """A recipient cannot be a name, because Twilio sends to no alphanumeric address."""
    with pytest.raises(ValueError, match="must be a phone number"):
        phone_numbers.recipient("Shop", "US")


@given(st.text(max_size=300) | st.from_regex(r"\A\+?[0-9 ()./x#;=-]{1,30}\Z"), st.sampled_from(["US", "GB", ""]))
def test_what_comes_out_can_be_sent_to(address: str, country: str) -> None:
    """Each text is an address or a ValueError, and an address stays the same if it is read again."""
    try:
        read = phone_numbers.recipient(address, country)
    except ValueError:
        return

    assert read == phone_numbers.recipient(read, "")


def test_few_invocations_load_the_numbering_plans() -> None:
    """An E.164 number does not load the numbering plans, which are large and slow to load."""
    code = (
        "import sys; from twilio_connector.validation import phone_numbers; phone_numbers.sender('+15005550006', '');"
        " sys.exit('phonenumbers' in sys.modules)"
    )
    path = str(phone_numbers.__file__).rpartition("/twilio_connector/")[0]

    assert 0 == subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode
