"""Phone numbers and the other addresses that Twilio sends to and from.

Nothing is guessed: a text that can be read as the numbers of two countries is refused.
"""

import re
import unicodedata
from types import ModuleType
from typing import Any

MAX_CHARACTERS = 256
"""Most characters of an address; a longer one is refused before any pattern is tried on it."""

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
# A zero after the calling code, as in +44 (0)20, which is only dialled within the country. Italy's numbers have one.
_ZERO = re.compile(r"\+(?:7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|[2-9][0-9]{2})0")
_SHORT_CODE = re.compile(r"[1-9][0-9]{2,5}")
# The characters that people write in a number. Letters, as on a keypad, and extensions are refused.
_WRITTEN = re.compile(r"[( ]*+\+?[0-9 ()\[\]./~·\-\u2010-\u2015\u2212\u30fc]++")
# A phone number that a spreadsheet took for a decimal number.
_DECIMAL = re.compile(r"\+?[0-9]+\.0+")
# 030 1234567/8: two numbers of one line.
_ALTERNATIVE = re.compile(r"[^/]*/[^/0-9]*(?:[0-9][^/0-9]*){1,3}")
_CHANNEL = re.compile(r"([a-z]+):\S+(?: \S+)*")
_LABELLED = re.compile(r"\s*([A-Za-z]+):(.*)", re.DOTALL)
_MESSAGING_SERVICE = re.compile(r"MG[0-9a-fA-F]{32}")
# https://www.twilio.com/docs/glossary/what-alphanumeric-sender-id
_ALPHANUMERIC = re.compile(r"(?=.*[A-Za-z])(?! )[A-Za-z0-9 +_&-]{1,11}(?<! )")
_MAX_NAME = 11

_QUOTES = " \t\r\n\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb<>="  # around what is copied from a text or a spreadsheet
_ENDS = _QUOTES + ",;:.!"
_NUMBER_LABELS = frozenset({"tel", "sms", "smsto", "callto", "phone", "mobile", "cell"})
_NO_CHANNELS = frozenset({"http", "https", "mailto"})
# A SIM (`sim:…`) exchanges messages with numbers, so its prefix is no channel.
_LIKE_NUMBERS = frozenset({"", "sim"})

# Countries whose national numbers, without a prefix, can be as short as a short code. For all other countries a short
# code is known without a numbering plan.
SHORT_NUMBERS = frozenset(("AC", "AD", "CK", "FK", "FO", "GL", "IT", "KI", "LU", "NC", "NF", "NU", "SB", "SH", "SO",
    "SR", "TA", "TK", "TO", "TV", "VA", "VU", "WF", "WS"))  # fmt: skip

_RULE = "must be a phone number (best in E.164), a short code or a channel address"
_REMEDY = "write + and the country code before it"


def recipient(address: str, country: str) -> str:
    """Return the address as Twilio takes it; a national number is read in `country` (ISO 3166, or empty).

    E.164 numbers, short codes and channel addresses (`whatsapp:…`) come back as they are. Raises ValueError,
    whose message says what is wrong without repeating the address.
    """
    if len(address) > MAX_CHARACTERS:
        raise ValueError(f"is too long: an address has at most {MAX_CHARACTERS} characters")
    if labelled := _LABELLED.fullmatch(_visible(address)):
        return _labelled(address, labelled[1], labelled[2], country)
    return _number(address, country)


def sender(address: str, country: str) -> str:
    """Return the address as `recipient` does; an alphanumeric sender ID comes back as it is, too."""
    if len(address) > MAX_CHARACTERS:
        raise ValueError(f"is too long: an address has at most {MAX_CHARACTERS} characters")
    if _ALPHANUMERIC.fullmatch(address):
        return address
    if _MESSAGING_SERVICE.fullmatch(address):
        raise ValueError("is a messaging service, which is given as messaging_service_sid")
    is_name = any(map(str.isalpha, address)) and ":" not in address and sum(map(str.isdigit, address)) <= 6  # noqa: PLR2004 fewer digits than a number has
    if is_name and len(address) > _MAX_NAME:
        raise ValueError(f"is too long for a sender name, which has at most {_MAX_NAME} characters")
    if is_name:
        raise ValueError("must be a phone number, or a sender name of letters A to Z, digits, and inner spaces + - _ &")
    return recipient(address, country)


def channel(address: str) -> str:
    """Return the channel of an address that was read; empty for numbers, short codes and names."""
    prefix, colon, _ = address.partition(":")
    return prefix if colon and prefix not in _LIKE_NUMBERS else ""


def _labelled(address: str, label: str, rest: str, country: str) -> str:
    """Return an address with a prefix and a colon: a channel, or a label such as `tel`."""
    if label.lower() in _NUMBER_LABELS:
        return _number(rest, country)
    if label.lower() in _NO_CHANNELS:
        raise ValueError(f"{_RULE}, not a URL")
    # A WhatsApp address is a number, or the id (US.1349…) of a person who hides the number.
    is_number = label.lower() == "whatsapp" and not any(map(str.isalpha, rest))
    if is_number or rest.lstrip().startswith("+"):
        return f"{label.lower()}:{_number(rest, country, short_codes=False)}"
    if not _CHANNEL.fullmatch(address):
        raise ValueError(_RULE)
    return address


def _number(written: str, country: str, *, short_codes: bool = True) -> str:
    if _E164.fullmatch(written) and not _ZERO.match(written):
        return written
    text = _folded(written)
    if any(map(str.isalpha, text)):
        raise ValueError(f"{_RULE}, in digits: letters and extensions are not supported")
    if not _WRITTEN.fullmatch(text):
        raise ValueError(_RULE)
    if _DECIMAL.fullmatch(text):
        raise ValueError(f"{_RULE}, not a decimal number")
    if _ALTERNATIVE.fullmatch(text):
        raise ValueError(f"{_RULE}, only one of them")
    digits = "".join(character for character in text if character in "+0123456789")
    if _E164.fullmatch(text) and not _ZERO.match(text):
        return text
    if digits.startswith("+"):
        return _international(digits, bare=text == digits)
    is_short = short_codes and _SHORT_CODE.fullmatch(text) is not None
    if is_short and country not in SHORT_NUMBERS:
        return text
    # A short code has no groups: (415) 555 is an incomplete number.
    return _national(digits, country, short_codes=short_codes and text == digits, is_short=is_short)


def _visible(text: str) -> str:
    """Return a text without the invisible characters that a copied one carries."""
    return "".join(character for character in text if unicodedata.category(character) != "Cf")


def _folded(text: str) -> str:
    """Return a number in ASCII digits, without quotes and punctuation around it."""
    folded = "".join(map(_fold, _visible(text)))
    return folded.lstrip(_QUOTES).rstrip(_ENDS)


def _fold(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    # Superscript and circled digits belong to a footnote or a list, so they stay as they are.
    return character if character.isdigit() else unicodedata.normalize("NFKC", character)


def _international(digits: str, *, bare: bool) -> str:
    """Return a number with its country code, and without the zero that is only dialled within the country."""
    import phonenumbers  # noqa: PLC0415 heavy, and few invocations need it

    if number := _valid(phonenumbers, digits, None):
        return _e164(phonenumbers, number)
    if bare and _E164.fullmatch(digits):
        return digits
    raise ValueError("is not a valid phone number; check it, or write it in E.164, as Twilio does")


def _national(digits: str, country: str, *, short_codes: bool, is_short: bool) -> str:
    """Return the E.164 form of a number without plus; raises ValueError if it could be a number of two countries."""
    if not country:
        raise ValueError("must be E.164 (+ and country code), since the stack has no DefaultCountry")
    import phonenumbers  # noqa: PLC0415 heavy, and few invocations need it

    if country not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"must be E.164, since the stack's DefaultCountry {country} has no numbering plan")
    number = _valid(phonenumbers, digits, country)
    if is_short and not (number and _is_usual(phonenumbers, digits, country)):
        return digits
    if number and number.country_code_source == phonenumbers.CountryCodeSource.FROM_NUMBER_WITH_IDD:
        return _dialled(phonenumbers, digits, number)
    # The number may begin with its country code, without the plus.
    coded = None if digits.startswith("0") else _valid(phonenumbers, f"+{digits}", None)
    home = phonenumbers.country_code_for_region(country)
    is_home = coded and coded.country_code == home
    if number and coded and not _prevails(phonenumbers, digits, country, number, coded):
        if not is_home:
            raise ValueError(f"could be a number in {country}, the stack's DefaultCountry, or abroad; {_REMEDY}")
        number = coded
    elif number and digits.startswith(str(home)) and _is_unlikely(phonenumbers, digits, country, number):
        raise ValueError(f"could be a number in {country} with its country code, or without; {_REMEDY}")
    if number or is_home:
        return _e164(phonenumbers, number or coded)
    if short_codes and _is_long_short_code(phonenumbers, digits, country):
        return digits
    raise ValueError(f"is not a valid phone number in {country}, the stack's DefaultCountry; {_REMEDY}")


def _dialled(phonenumbers: ModuleType, digits: str, number: Any) -> str:
    """Return a number that begins with the country's prefix for calls abroad, such as 00 or 011."""
    # Some countries' prefix is 001 or 009. Elsewhere this is 00 and the beginning of a country code.
    other = _valid(phonenumbers, f"+{digits[2:]}", None) if digits.startswith("00") else None
    if other and _e164(phonenumbers, other) != _e164(phonenumbers, number):
        raise ValueError(f"could be a number of two countries; {_REMEDY}")
    return _e164(phonenumbers, number)


def _valid(phonenumbers: ModuleType, digits: str, country: str | None) -> Any:
    """Return the number, or None if no numbering plan has it."""
    try:
        number = phonenumbers.parse(digits, country, keep_raw_input=True)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_valid_number(number) else None


def _e164(phonenumbers: ModuleType, number: Any) -> str:
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def _is_usual(phonenumbers: ModuleType, digits: str, country: str) -> bool:
    """Tell whether people in the country write the number in this way, with the prefix that it is dialled with."""
    found = next(iter(phonenumbers.PhoneNumberMatcher(digits, country)), None)
    return found is not None and found.raw_string == digits


def _prevails(phonenumbers: ModuleType, digits: str, country: str, number: Any, coded: Any) -> bool:
    """Tell whether digits are a national number although they would also be valid with a plus.

    They are if people in the country write it so, it has the usual length, and it is as likely to receive messages.
    """
    nationally = phonenumbers.national_significant_number(number)
    prefix = phonenumbers.ndd_prefix_for_region(country, True) or ""  # noqa: FBT003 without its tones
    kinds = phonenumbers.PhoneNumberType
    kind = phonenumbers.number_type(number)
    mobile = {kinds.MOBILE, kinds.FIXED_LINE_OR_MOBILE}
    common = phonenumbers.example_number_for_type(
        phonenumbers.region_code_for_number(number), kinds.MOBILE if kind in mobile else kinds.FIXED_LINE
    )
    return (
        digits in {nationally, prefix + nationally}
        and common is not None
        and len(nationally) == len(phonenumbers.national_significant_number(common))
        and (kind in mobile or kind == phonenumbers.number_type(coded) == kinds.FIXED_LINE)
        and _is_usual(phonenumbers, digits, country)
    )


def _is_unlikely(phonenumbers: ModuleType, digits: str, country: str, number: Any) -> bool:
    """Tell whether the digits are a fixed line's number that people in the country would not write in this way."""
    return (
        digits == phonenumbers.national_significant_number(number)
        and phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.FIXED_LINE
        and not _is_usual(phonenumbers, digits, country)
    )


def _is_long_short_code(phonenumbers: ModuleType, digits: str, country: str) -> bool:
    """Tell whether the country has short codes of seven digits or more, and this is one."""
    try:
        number = phonenumbers.parse(digits, country)
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_valid_short_number_for_region(number, country))
