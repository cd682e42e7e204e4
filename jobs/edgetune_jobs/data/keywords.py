"""Expected keywords in texts: one comparison for scores and for warnings about data."""

import re
import unicodedata
from collections.abc import Iterator

from edgetune_contract.evaluation import Match

# Scripts that write words without spaces, or attach particles to them: their words have no boundaries to check.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_SIGNED_NUMBER = re.compile(r"[+\-\u2212]\d")
_ENDS_AS_NUMBER = re.compile(r"\d[.,]$")
_GOES_ON_AS_NUMBER = re.compile(r"[.,]?\d|e[+-]?\d")


def comparable(text: str) -> str:
    """Text for comparisons: without differences of case and of composed characters, white space as single spaces."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def contains(text: str, keyword: str, match: Match) -> bool:
    """Whether a text contains a keyword.

    Args:
        text: made comparable.
        keyword: made comparable; not empty.
        match: Word: where the keyword begins or ends in a letter or a digit, the text has a word boundary, and a number
            is a whole number ("12" is in "12.", "12 bar" and "12bar", not in "120", "0.12", "12.5" or "-12").
            Substring: anywhere.
    """
    if match is Match.SUBSTRING:
        return keyword in text
    return any(_is_whole(text, begin, begin + len(keyword)) for begin in _places(text, keyword))


def _places(text: str, keyword: str) -> Iterator[int]:
    begin = text.find(keyword)
    while begin >= 0:
        yield begin
        begin = text.find(keyword, begin + 1)


def _is_whole(text: str, begin: int, end: int) -> bool:
    """Whether text[begin:end] is cut out at word boundaries."""
    return _begins_whole(text, begin) and _ends_whole(text, end)


def _begins_whole(text: str, begin: int) -> bool:
    before = text[max(0, begin - 2) : begin]  # not all of it: a text can have the keyword at every other character
    if not before:
        return True
    if _SIGNED_NUMBER.match(text, begin):
        return not _is_in_word(before[-1])
    if not _is_in_word(text[begin]):
        return True
    if text[begin].isdecimal() and (_ENDS_AS_NUMBER.search(before) or _is_sign(before)):
        return False
    return not _is_in_word(before[-1])


def _ends_whole(text: str, end: int) -> bool:
    after = text[end : end + 3]
    if not after:
        return True
    if text[end - 1].isdecimal():  # a unit may follow at once
        return not _GOES_ON_AS_NUMBER.match(after) and after[0] != "_"
    return not (_is_in_word(text[end - 1]) and _is_in_word(after[0]))


def _is_sign(before: str) -> bool:
    """Whether a text ends in the sign of a number, not in a hyphen between two words or numbers."""
    return before[-1] in "-\u2212" and not (len(before) > 1 and (before[-2].isalnum() or before[-2] in ")]"))


def _is_in_word(character: str) -> bool:
    """Whether a character belongs to a word that has boundaries: a letter, digit, combining mark or underscore."""
    if character.isascii():
        return character.isalnum() or character == "_"
    return unicodedata.category(character)[0] in "LNM" and not unicodedata.name(character, "").startswith(_UNSPACED)
