"""The messages that pages quote are those of the code."""

from support.apiserver import REPOSITORY
from support.messages import quoted, templates_of, templates_of_packages, unknown

TROUBLESHOOTING = REPOSITORY / "docs" / "troubleshooting.md"


def test_every_message_in_the_troubleshooting_is_one_of_the_code() -> None:
    messages = quoted(TROUBLESHOOTING)

    assert len(messages) > 50
    assert unknown(messages, templates_of_packages()) == []


def test_texts_of_a_module_have_gaps_where_they_are_filled_in_and_no_docstrings() -> None:
    module = '"""A docstring."""\nprint(f"no {kind} in " f"{place!r}; add one", "plain\\n text")\n'

    assert list(templates_of(module)) == ["no … in …; add one", "plain text"]


def test_a_message_is_known_by_its_words_in_their_order() -> None:
    templates = ["no … in …; add one", "other"]

    assert unknown(["no … in …", "… add one", "no profile in"], templates) == ["no profile in"]
    assert unknown(["add one … no"], templates) == ["add one … no"]
