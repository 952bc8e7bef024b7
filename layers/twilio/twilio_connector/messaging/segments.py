"""How a text splits into SMS segments (GSM 03.38; https://www.twilio.com/docs/glossary/what-is-an-sms-segment)."""

from typing import Any

_GSM_7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_7_EXTENDED = frozenset("\f^{}\\[~]|€")  # an escape and a septet each

_GSM_7_SIZES = (160, 153)  # septets in a single segment, and in each of several
_UCS_2_SIZES = (70, 67)  # UTF-16 code units likewise


def segments(text: str) -> dict[str, Any]:
    """Return `encoding` (GSM-7 or UCS-2), `count` of segments and `characters`, as Twilio will send the text.

    A character never spans two segments, so a segment may stay short of its size.
    """
    if _GSM_7.union(_GSM_7_EXTENDED).issuperset(text):
        encoding, sizes = "GSM-7", _GSM_7_SIZES
        widths = [2 if character in _GSM_7_EXTENDED else 1 for character in text]
    else:
        encoding, sizes = "UCS-2", _UCS_2_SIZES
        widths = [2 if ord(character) > 0xFFFF else 1 for character in text]  # noqa: PLR2004 needs a surrogate pair
    single, several = sizes
    count = 1 if widths else 0
    if sum(widths) > single:
        filled = 0
        for width in widths:
            if filled + width > several:
                count += 1
                filled = 0
            filled += width
    return {"encoding": encoding, "count": count, "characters": len(text)}
