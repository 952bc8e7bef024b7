"""Phone numbers and the other addresses that Twilio sends to and from."""

import re

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
_CHANNEL = re.compile(r"[a-z]+:\S+( \S+)*")
# What people write in a number: no letters, which a keypad would turn into digits, and no extension.
_WRITTEN = re.compile(r"\s*\+?[0-9\s()./\-\u2010-\u2015]+")
_SHORT_CODE = re.compile(r"[0-9]{3,6}")
# https://www.twilio.com/docs/glossary/what-alphanumeric-sender-id
_ALPHANUMERIC = re.compile(r"(?=.*[A-Za-z])(?! )[A-Za-z0-9 +_&-]{1,11}(?<! )")


def recipient(address: str, country: str) -> str:
    """Return the address as Twilio takes it; a national number is read in `country` (ISO 3166, or empty).

    E.164 numbers, short codes and channel addresses (`whatsapp:…`) come back as they are. Raises ValueError,
    whose message says what is wrong without repeating the address.
    """
    if _E164.fullmatch(address) or _CHANNEL.fullmatch(address) or _SHORT_CODE.fullmatch(address):
        return address
    return _national(address, country)


def sender(address: str, country: str) -> str:
    """Return the address as `recipient` does; an alphanumeric sender ID comes back as it is, too."""
    return address if _ALPHANUMERIC.fullmatch(address) else recipient(address, country)


def _national(number: str, country: str) -> str:
    if not _WRITTEN.fullmatch(number):
        raise ValueError("must be a phone number (best in E.164), a short code or a channel address")
    import phonenumbers  # noqa: PLC0415 heavy, and few invocations need it

    international = number.lstrip().startswith("+")
    if not international and not country:
        raise ValueError("must be E.164 (+ and country code), since the stack has no DefaultCountry")
    if not international and country not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"must be E.164, since the stack's DefaultCountry {country} has no numbering plan")
    try:
        parsed = phonenumbers.parse(number, None if international else country)
    except phonenumbers.NumberParseException:
        raise ValueError("must be a phone number (best in E.164), a short code or a channel address") from None
    # A number is never moved to another country than the one it was written for.
    valid = (
        phonenumbers.is_valid_number(parsed)
        if international
        else phonenumbers.is_valid_number_for_region(parsed, country)
    )
    if not valid:
        where = "" if international else f" in {country}, the stack's DefaultCountry"
        raise ValueError(f"is not a valid phone number{where}")
    return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
