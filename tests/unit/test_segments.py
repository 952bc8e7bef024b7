"""The segments of a text are counted as Twilio will send them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.messaging.segments import segments

# The tables of GSM 03.38, by code.
BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ"
    " !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = "\f^{}\\[~]|€"
EMOJI = "😀"


@pytest.mark.parametrize(
    ("text", "encoding", "count"),
    [
        ("", "GSM-7", 0),
        ("a", "GSM-7", 1),
        ("a" * 160, "GSM-7", 1),
        ("a" * 161, "GSM-7", 2),
        ("a" * 306, "GSM-7", 2),
        ("a" * 307, "GSM-7", 3),
        ("a" * 1600, "GSM-7", 11),
        ("€" * 80, "GSM-7", 1),
        ("€" * 81, "GSM-7", 2),
        ("a" * 158 + "€", "GSM-7", 1),
        ("a" * 159 + "€", "GSM-7", 2),
        ("a" * 152 + "€" + "a" * 151, "GSM-7", 2),
        ("a" * 152 + "€" + "a" * 152, "GSM-7", 3),
        ("ç", "UCS-2", 1),
        ("ж" * 70, "UCS-2", 1),
        ("ж" * 71, "UCS-2", 2),
        ("ж" * 134, "UCS-2", 2),
        ("ж" * 135, "UCS-2", 3),
        (EMOJI * 35, "UCS-2", 1),
        (EMOJI * 36, "UCS-2", 2),
        (EMOJI * 66, "UCS-2", 2),
        (EMOJI * 67, "UCS-2", 3),
        ("ж" * 66 + EMOJI + "ж" * 65, "UCS-2", 2),
        ("ж" * 66 + EMOJI + "ж" * 66, "UCS-2", 3),
        ("a" * 69 + "’", "UCS-2", 1),
        ("a" * 70 + "’", "UCS-2", 2),
    ],
)
def test_segments_are_counted(text: str, encoding: str, count: int) -> None:
    """The encoding and the number of segments are correct. No escape sequence or surrogate pair spans two segments."""
    assert {"encoding": encoding, "count": count, "characters": len(text)} == segments(text)


@pytest.mark.parametrize(("alphabet", "widest"), [(BASIC, 160), (EXTENSION, 80)], ids=["basic", "extension"])
def test_the_gsm_alphabet_is_whole(alphabet: str, widest: int) -> None:
    """Each character of GSM 03.38 is encoded as GSM-7. A character of the extension table takes two septets."""
    for character in alphabet:
        assert ("GSM-7", 1) == tuple(segments(character * widest).values())[:2], character
        assert 2 == segments(character * (widest + 1))["count"], character


@given(st.characters(exclude_characters=BASIC + EXTENSION, exclude_categories=["Cs"]))
def test_any_other_character_needs_ucs_2(character: str) -> None:
    """One character outside GSM 03.38 is enough to encode the whole text as UCS-2."""
    assert "UCS-2" == segments(f"Hello {character}")["encoding"]


@given(st.text(alphabet=BASIC + EXTENSION, max_size=1600))
def test_gsm_segments_are_as_few_as_can_be(text: str) -> None:
    """A GSM-7 text takes the fewest segments possible, where each segment may stay one septet short of its size."""
    septets = len(text) + sum(character in EXTENSION for character in text)
    least = -(-septets // 153) if septets > 160 else min(septets, 1)

    assert least <= segments(text)["count"] <= -(-septets // 152)


@given(st.text(min_size=1, max_size=1600))
def test_counting_never_raises(text: str) -> None:
    """Counting raises no error for any text. Lone surrogates are refused earlier, but they can be counted too."""
    assert segments(text)["count"] >= 1
