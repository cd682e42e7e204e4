"""What a terminal would obey is escaped, and nothing else is changed."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgetune_contract.request import Failure, Result
from edgetune_contract.stages import ExitCode, Stage, reason_for
from edgetune_contract.values.text import escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\u001b[2Jgone"),
        ("a\rb", "a\\u000db"),
        ("\x9b31m", "\\u009b31m"),
        ("\x7f\x00\x08", "\\u007f\\u0000\\u0008"),
        ("invoice\u202efdp.exe", "invoice\\u202efdp.exe"),
        ("\u2066\u2069\u200e\u200f\u061c", "\\u2066\\u2069\\u200e\\u200f\\u061c"),
        ("a\u2028b", "a\\u2028b"),
        ("caf\udce9.jsonl", "caf\\udce9.jsonl"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("سؤال، 問題, naïve, 🧑\u200d🔧", "سؤال، 問題, naïve, 🧑\u200d🔧"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_no_control_or_bidirectional_character_is_left() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    left = [
        character
        for character in escaped(everything)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    assert left == ["\t", "\n"]


@given(some.text())
def test_escaped_text_stays_as_it_is_and_json_keeps_its_value(text: str) -> None:
    assert escaped(escaped(text)) == escaped(text)
    assert json.loads(escaped(json.dumps(text, ensure_ascii=False))) == text


def test_the_messages_and_warnings_of_a_stage_are_escaped() -> None:
    failure = Failure.brief(ExitCode.INVALID, reason_for(ExitCode.INVALID), "no file \x1b[8m")
    result = Result(stage=Stage.PREPARE, digest="0" * 64, warnings=("column \u202ex",), facts={"a": "\x9b"})

    assert failure.message == "no file \\u001b[8m"
    assert (result.warnings, result.facts) == (("column \\u202ex",), {"a": "\\u009b"})
