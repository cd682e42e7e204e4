"""Expected keywords in texts: word boundaries, numbers, Unicode, scripts without spaces."""

import unicodedata
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.evaluation import Match
from edgetune_jobs.data.keywords import comparable, contains


def finds(keyword: str, text: str, match: Match = Match.WORD) -> bool:
    return contains(comparable(text), comparable(keyword), match)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("no", "the state is normal"),
        ("no", "no_load"),
        ("high", "highest"),
        ("on", "Iron"),
        ("valve", "V1valve"),
        ("12", "120"),
        ("12", "3.12"),
        ("12", "12.5 bar"),
        ("200", "1,200"),
        ("12", "A12"),
        ("12", "it is -12 °C"),
        ("12", "it is \u221212 °C"),
        ("12", "12e5"),
        ("11.4", "11.45"),
        ("1.5", "21.5"),
        ("-3", "10-3"),
        ("лив", "прилив"),
        ("cafe", "cafe\u0301"),
        ("ok", "tokyo"),
    ],
)
def test_a_keyword_inside_a_longer_word_or_number_is_not_found(keyword: str, text: str) -> None:
    assert not finds(keyword, text)
    assert finds(keyword, text, Match.SUBSTRING) or keyword == "cafe"


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("no", "No, it is not."),
        ("no", "the answer is (no)"),
        ("no", "normal: no"),
        ("12", "It is 12."),
        ("12", "12, then 13"),
        ("12", "set it to 12bar"),
        ("12", "120 or 12"),
        ("12", "10-12"),
        ("-3", "it is -3 °C"),
        ("11.4 mm/s", "Value: 11.4 mm/s."),
        ("<5", "it is <5"),
        ("C++", "in C++11"),
        ("°C", "20°C"),
        ("oil loss", "Fault: oil\n loss."),
        ("故障", "轴承故障。"),
        ("고장", "펌프 고장이 있다"),
        ("ok", "OKです"),
        ("stop", "**Stop**"),
        ("pump", "the pump's seal"),
        ("STRASSE", "straße"),
        ("Ω", "5 \u2126"),
    ],
)
def test_a_whole_word_or_number_is_found(keyword: str, text: str) -> None:
    assert finds(keyword, text)


@given(keyword=st.text(min_size=1, max_size=8).filter(str.strip), match=st.sampled_from(Match))
def test_a_keyword_is_found_in_itself_composed_or_not_and_in_any_case(keyword: str, match: Match) -> None:
    for form in ("NFC", "NFD"):
        assert finds(keyword, unicodedata.normalize(form, keyword), match)
    assert finds(keyword, f"( {keyword} )", match)
    assert finds(keyword, keyword.casefold(), match)


def test_a_keyword_inside_thousands_of_words_of_a_long_text_takes_no_quadratic_time() -> None:
    text = "the " * 200_000

    began = process_time()
    found = contains(text, "e", Match.WORD)

    assert not found
    assert process_time() - began < 2, "copying the text before each place takes ten times as long"
