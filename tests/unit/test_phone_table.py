"""Numbers are read as people in twelve countries and more write them, and never as another country's numbers.

The numbers are the examples of the numbering plans themselves, one of each region that shares a calling code.
"""

from functools import cache
from typing import Any, NamedTuple

import phonenumbers
import pytest
from phonenumbers import PhoneMetadata, PhoneNumberFormat, PhoneNumberType
from twilio_connector.validation import phone_numbers

COUNTRIES = ("US", "CA", "GB", "JE", "IT", "NO", "FI", "AU", "RU", "MA", "DE", "IN", "BR")
KINDS = (PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE)


class Case(NamedTuple):
    """A number as people write it in a country, and the address that Twilio gets, or None if it is refused."""

    written: str
    country: str
    number: str | None


@cache
def example(region: str, kind: int = PhoneNumberType.MOBILE) -> Any:
    """Return the example number of a region."""
    return phonenumbers.example_number_for_type(region, kind)


def written(number: Any, style: int) -> str:
    """Return a number in one of the styles of the numbering plans."""
    return str(phonenumbers.format_number(number, style))


def e164(number: Any) -> str:
    """Return a number in E.164, the form that Twilio takes."""
    return written(number, PhoneNumberFormat.E164)


def neighbours(country: str) -> list[str]:
    """Return the regions that share a country's calling code, including the country."""
    return list(phonenumbers.region_codes_for_country_code(phonenumbers.country_code_for_region(country)))


def wide(text: str) -> str:
    """Return a text in full-width characters."""
    return "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else "\u3000" for character in text)


def arabic(text: str) -> str:
    """Return a text with Arabic digits."""
    return text.translate({ord("0") + digit: 0x0660 + digit for digit in range(10)})


NATIONAL = [
    Case(written(number, PhoneNumberFormat.NATIONAL), country, e164(number))
    for country in COUNTRIES
    for region in neighbours(country)
    for kind in KINDS
    if (number := example(region, kind))
]


def spelled(country: str) -> list[Case]:
    """Return the cases of one number in the ways that people write it, of refused texts, and of a foreign number."""
    number = example(country)
    national, international = (
        written(number, style) for style in (PhoneNumberFormat.NATIONAL, PhoneNumberFormat.INTERNATIONAL)
    )
    plain = e164(number)
    code = str(number.country_code)
    rest = plain.removeprefix(f"+{code}")
    dialled = {"US": "011", "CA": "011", "AU": "0011", "RU": "810", "BR": "0015"}.get(country, "00")
    foreign = "+41781234567"  # a number of none of the countries above
    taken = [
        international,
        written(number, PhoneNumberFormat.RFC3966),
        plain[1:],
        f"\u202a{international}\u202c",
        f"\u2068{national}\u2069",
        f"{national[:3]}\u200b{national[3:]}\u200f",
        f"\ufeff{plain}",
        wide(international),
        wide(national),
        arabic(national),
        international.replace(" ", "\u00a0"),
        international.replace(" ", "\u2011"),
        international.replace(" ", "."),
        f"  {national}\n",
        f"{plain},",
        f'"{plain}"',
        f"'{plain}",
        f"Tel: {plain}",
        f"mobile:{plain}",
        f"(+{code}) {rest}",
    ]
    refused = [
        f"{national} ext. 5",
        f"{national} x5",
        f"{plain};ext=5",
        f"{plain},,5",
        f"{plain}#5",
        f"{plain} {plain}",
        f"{plain} / {plain}",
        f"{plain}\n{plain}",
        f"{plain[1:]}.0",
        f"{plain}\u00b9",
        f"{plain[:-1]}\u2464",
        f"{plain} (home)",
        f"1.{plain[2:5]}E+11",
        plain.replace("0", "O").replace("1", "l").replace("2", "Z"),
        f"+{plain}",
        f"{international[:6]}\t{international[6:]}",
    ]
    return [
        *(Case(text, country, plain) for text in taken),
        *(Case(text, country, None) for text in refused),
        Case(dialled + foreign[1:], country, foreign),
        Case(f"{dialled} {foreign[1:3]} {foreign[3:]}", country, foreign),
        Case(foreign, country, foreign),
        Case(f"+41 (0)78 {foreign[5:]}", country, foreign),
    ]


SPELLED = [case for country in COUNTRIES for case in spelled(country)]

ODD = [
    Case("787-555-0123", "US", "+17875550123"),
    Case("07797 712345", "GB", "+447797712345"),
    Case("07797 712345", "DE", None),
    Case("0044 7797 712345", "US", None),
    Case("+44 07797 712345", "US", "+447797712345"),
    Case("+4407797712345", "", "+447797712345"),
    Case("+39 (06) 6982 1234", "", "+390669821234"),
    Case("+390669821234", "", "+390669821234"),
    Case("+4400000000000", "", "+4400000000000"),
    # Numbers without the zero, which spreadsheets drop, or without the plus, which people leave out.
    Case("7797712345", "GB", "+447797712345"),
    Case("447797712345", "GB", "+447797712345"),
    Case("447797712345", "US", None),
    Case("447797712345", "DE", None),
    Case("4915112345678", "DE", "+4915112345678"),
    Case("491511234567", "DE", None),
    Case("15123456789", "DE", None),
    Case("436641234567", "AT", "+436641234567"),
    Case("33612345678", "LU", None),
    Case("33612345678", "IT", None),
    Case("902123456789", "BR", None),
    Case("6462345678", "US", "+16462345678"),
    Case("8 916 123-45-67", "RU", "+79161234567"),
    Case("84912345678", "RU", None),
    Case("001 415 555 2671", "HK", None),
    Case("009 1 415 555 2671", "HK", None),
    Case("0 21 11 98765-4321", "BR", "+5511987654321"),
    # A slash within one number, and a slash between two numbers.
    Case("030/1234567", "DE", "+49301234567"),
    Case("030 1234567/8", "DE", None),
    Case("06/12/34/56/78", "FR", "+33612345678"),
    # Short codes: of three to six digits, and longer ones in the countries that have them.
    Case("911", "US", "911"),
    Case("12345", "US", "12345"),
    Case("\u206812345\u2069", "US", "12345"),
    Case(wide("262966"), "CA", "262966"),
    Case("60300", "GB", "60300"),
    Case("72000", "DE", "72000"),
    Case("700123", "DE", "700123"),
    Case("19123456", "AU", "19123456"),
    Case("12345678", "AU", None),
    Case("1234567", "US", None),
    Case("012345", "US", None),
    Case("12 345", "US", None),
    # Numbers as short as short codes.
    Case("211234", "FO", "+298211234"),
    Case("12345", "FO", "12345"),
    Case("066982", "IT", "+39066982"),
    # Channel addresses.
    Case("WhatsApp:+15558675309", "US", "whatsapp:+15558675309"),
    Case("whatsapp: +1 (415) 555-2671", "", "whatsapp:+14155552671"),
    Case("whatsapp:\u2068+15558675309\u2069", "", "whatsapp:+15558675309"),
    Case("whatsapp:07797 712345", "GB", "whatsapp:+447797712345"),
    Case("whatsapp:07797 712345", "US", None),
    Case("whatsapp:12345", "US", None),
    Case("whatsapp:+1 415 555 2671 ext 5", "US", None),
    Case("whatsapp:US.13491208655302741918", "US", "whatsapp:US.13491208655302741918"),
    Case("rcs:+1 415 555 2671", "", "rcs:+14155552671"),
    Case("rcs:brand_agent", "US", "rcs:brand_agent"),
    Case("messenger:4155552671", "US", "messenger:4155552671"),
    Case("sim:DE" + "0" * 32, "US", "sim:DE" + "0" * 32),
    # Texts that are not addresses.
    Case("https://wa.me/14155552671", "US", None),
    Case("mailto:name@example.com", "US", None),
    Case("tel:", "US", None),
    Case("*100#", "US", None),
    Case("(0)", "US", None),
    Case("\u2068\u2069", "US", None),
    Case("1\ufe0f\u20e32\ufe0f\u20e33\ufe0f\u20e3", "US", None),
]


TABLE = [*NATIONAL, *SPELLED, *ODD]


def test_a_number_is_read_right() -> None:
    """Each valid number of the table is read correctly, despite other characters in it and around it."""
    numbers = {case: phone_numbers.recipient(case.written, case.country) for case in TABLE if case.number}

    assert {case: case.number for case in numbers} == numbers


def test_what_is_not_a_number_is_refused() -> None:
    """Each other text of the table is refused with a reason, which does not repeat the number."""
    for case in (case for case in TABLE if not case.number):
        with pytest.raises(ValueError, match=r"^(must be a|is not a valid|could be a) (phone )?number") as refusal:
            phone_numbers.recipient(case.written, case.country)

        digits = "".join(filter(str.isdecimal, case.written))
        assert len(digits) < 5 or digits[:5] not in str(refusal.value), case


def test_the_table_is_large_enough() -> None:
    """The table has at least 12 countries, 120 different numbers, and regions that share a calling code."""
    assert len(COUNTRIES) >= 12
    assert len({case.written for case in TABLE}) >= 120
    assert {region for country in COUNTRIES for region in neighbours(country)} >= {
        "PR",
        "JM",
        "IM",
        "GG",
        "VA",
        "SJ",
        "KZ",
    }


@pytest.mark.parametrize("country", COUNTRIES)
def test_no_number_is_read_as_another_countrys(country: str) -> None:
    """A foreign number without its plus is refused, unless it looks like a national number.

    Such a number has as many digits as national numbers have, and cannot be distinguished from one.
    """
    home = phonenumbers.country_code_for_region(country)
    lengths = {len(str(example(country, kind).national_number)) for kind in KINDS}
    for region in sorted(phonenumbers.SUPPORTED_REGIONS - set(neighbours(country))):
        for number in filter(None, (example(region, kind) for kind in KINDS)):
            digits = e164(number)[1:]
            try:
                read = phone_numbers.recipient(digits, country)
            except ValueError:
                continue
            assert read.removeprefix(f"+{home}") == digits
            assert len(digits) in lengths


@pytest.mark.parametrize("country", ["US", "DE", ""])
def test_a_number_with_its_country_code_is_the_same_in_all_stacks(country: str) -> None:
    """A number with its country code does not depend on the stack's country, which may be unset."""
    numbers = [
        example(region) or example(region, PhoneNumberType.FIXED_LINE)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    ]
    for style in (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.RFC3966, PhoneNumberFormat.E164):
        assert [e164(number) for number in numbers] == [
            phone_numbers.recipient(written(number, style), country) for number in numbers
        ]


def test_short_numbers_are_those_of_the_numbering_plans() -> None:
    """`SHORT_NUMBERS` has the countries with numbers that have no prefix and are as short as a short code."""

    def is_short(region: str) -> bool:
        plan: Any = PhoneMetadata.metadata_for_region(region)
        main: Any = PhoneMetadata.metadata_for_region(phonenumbers.region_code_for_country_code(plan.country_code))
        kinds = [kind for kind in (plan.fixed_line, plan.mobile) if kind]
        lengths = [length for kind in kinds for length in kind.possible_length if length > 0]
        has_prefix = any(form.national_prefix_formatting_rule for form in main.number_format)
        return bool(lengths) and min(lengths) <= 6 and not has_prefix

    assert set(filter(is_short, phonenumbers.SUPPORTED_REGIONS)) == phone_numbers.SHORT_NUMBERS
