"""Which rows are valid examples, and the reasons for invalid rows."""

from typing import Any

import pytest

from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow, Unit
from edgetune_jobs.errors import InvalidInput
from support.data_rows import dataset_spec

PLACE = Place("rows.jsonl", Unit.LINE, 7)
ROLES = "expected system, developer, user, assistant or tool"


def parse(value: object, **options: Any) -> Example | BadRow:
    return RowParser(dataset_spec(**options)).parse(RawRow(PLACE, value))


def reason(value: object, **options: Any) -> str:
    bad = parse(value, **options)
    assert isinstance(bad, BadRow), bad
    assert bad.place == PLACE
    return bad.reason


def usable(value: object, **options: Any) -> Example:
    example = parse(value, **options)
    assert isinstance(example, Example), example
    return example


def turn(role: object, content: object = "x") -> dict[str, object]:
    return {"role": role, "content": content}


def test_extra_fields_are_no_part_of_an_example_and_strings_are_kept_unchanged() -> None:
    example = usable({"id": 3, "instruction": " a\n", "response": "\tb ", "more": [None]})
    assert example == Example(PLACE, (Message("user", " a\n"),), "\tb ", ())


def test_fields_have_the_names_in_the_spec() -> None:
    fields = {"instruction": "frage", "response": "antwort", "expectedKeyword": "stichwort"}
    example = usable({"frage": "a", "antwort": "b", "stichwort": ["c"]}, fields=fields)
    assert (example.prompt[0].content, example.response, example.keywords) == ("a", "b", ("c",))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instructions": "a", "response": "b"},
            "missing field 'instruction' (found: 'instructions', 'response'); did you mean 'instructions'? "
            "if so, set spec.dataset.fields.instruction: 'instructions'",
        ),
        (
            {"instruction": "a", "Response": "b"},
            "missing field 'response' (found: 'instruction', 'Response'); did you mean 'Response'? "
            "if so, set spec.dataset.fields.response: 'Response'",
        ),
        (
            {"instruction": "a", "output": "b"},
            "missing field 'response' (found: 'instruction', 'output'); did you mean 'output'? "
            "if so, set spec.dataset.fields.response: 'output'",
        ),
        (
            {"qwertz": "a"},
            "missing field 'instruction' (found: 'qwertz'); "
            "set spec.dataset.fields.instruction to the name of the field",
        ),
        (
            {},
            "missing field 'instruction' (found: nothing); "
            "set spec.dataset.fields.instruction to the name of the field",
        ),
        ({"instruction": None, "response": "b"}, "'instruction' is empty"),
        ({"instruction": "a", "response": " \n"}, "'response' is empty"),
        ({"instruction": 5, "response": "b"}, "'instruction' is a number, not a string"),
        (
            {"instruction": "a", "response": ["b"]},
            "'response' is a list, not a string; write it as a string, such as its JSON text",
        ),
        ({"instruction": "a", "response": True}, "'response' is a boolean, not a string"),
        (
            {"instruction": "a", "response": {"b": 1}},
            "'response' is an object, not a string; write it as a string, such as its JSON text",
        ),
        ({"instruction": "a", "response": b"b"}, "'response' is of type bytes, not a string"),
        ({"instruction": "a\x00", "response": "b"}, "'instruction' contains a NUL character"),
        (
            {"instruction": "a", "response": "\ud83d"},
            "'response' contains an unpaired surrogate, which is not a valid character",
        ),
        ({"instruction": "a", "response": "b", "expected_keyword": ""}, "'expected_keyword' is empty"),
        ({"instruction": "a", "response": "b", "expected_keyword": ["c", " "]}, "expected_keyword[1] is empty"),
        (
            {"instruction": "a", "response": "b", "expected_keyword": [["c"]]},
            "expected_keyword[0] is a list, not a string",
        ),
        ({"instruction": "a", "response": "b", "expected_keyword": 5}, "'expected_keyword' is a number, not a string"),
        ("a", "expected an object, found a string"),
        (None, "expected an object, found null"),
    ],
)
def test_an_invalid_row_has_a_reason(row: object, expected: str) -> None:
    assert reason(row) == expected


@pytest.mark.parametrize(("value", "keywords"), [(None, ()), ("c", ("c",)), (["c", "d"], ("c", "d")), ([], ())])
def test_keywords_are_one_or_a_list_or_absent(value: object, keywords: tuple[str, ...]) -> None:
    assert usable({"instruction": "a", "response": "b", "expected_keyword": value}).keywords == keywords


def test_the_last_assistant_message_of_a_chat_is_the_response() -> None:
    messages = [turn("system"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    example = usable({"messages": messages, "expected_keyword": "d"}, format="Chat")
    assert [message.role for message in example.prompt] == ["system", "user", "assistant", "user"]
    assert (example.response, example.keywords) == ("d", ("d",))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("hello", "'messages' is a string, not a list of messages with role and content"),
        ([], "'messages' has no assistant message, so there is nothing to learn"),
        ([turn("user")], "'messages' has no assistant message, so there is nothing to learn"),
        (
            [turn("user"), turn("assistant"), turn("user")],
            "'messages' ends with a user message; the last message must be an assistant message",
        ),
        ([turn("assistant")], "'messages' has no user message before the first assistant message"),
        (
            [turn("user"), turn("system"), turn("assistant")],
            "'messages' has a system message that is not the first message",
        ),
        (
            [turn("human"), turn("assistant")],
            f"messages[0].role is 'human'; {ROLES}",
        ),
        (
            [turn(1), turn("assistant")],
            f"messages[0].role is a number; {ROLES}",
        ),
        (
            [turn([]), turn("assistant")],
            f"messages[0].role is a list; {ROLES}",
        ),
        ([turn("user", None), turn("assistant")], "messages[0].content is empty"),
        ([turn("user"), turn("assistant", "")], "messages[1].content is empty"),
        ([turn("user", [{"type": "text"}]), turn("assistant")], "messages[0].content is empty"),
        ([turn("user", {"text": "a"}), turn("assistant")], "messages[0].content is an object, not a string"),
        (["hello"], "messages[0] is a string, not an object with role and content"),
        ([{"role": "user"}], "messages[0] must have role and content"),
        ([{"from": "human"}], "messages[0] must have role and content"),
    ],
)
def test_an_invalid_chat_has_a_reason(messages: object, expected: str) -> None:
    assert reason({"messages": messages}, format="Chat") == expected


def test_a_text_row_has_no_prompt() -> None:
    example = usable({"text": "all of it"}, format="Text")
    assert (example.prompt, example.response) == ((), "all of it")
    assert "did you mean 'content'?" in reason({"content": "a"}, format="Text")


def test_a_misspelled_keyword_field_is_found_only_if_the_right_name_is_missing() -> None:
    parser = RowParser(dataset_spec())
    assert parser.probable_keyword_field(["instruction", "expected_keywords"]) == "expected_keywords"
    assert parser.probable_keyword_field(["keyword", "response"]) == "keyword"
    assert parser.probable_keyword_field(["expected_keyword", "keyword"]) is None
    assert parser.probable_keyword_field(["instruction", "note"]) is None


def test_a_template_may_contain_any_column() -> None:
    template, fields = "{task}: {instruction}\n{year}, {input text}", {"instruction": "question"}
    row = {"question": "{input text}?", "response": "b", "task": "QA", "year": 2024, "input text": None, "more": 1}

    example = usable(row, template=template, fields=fields)

    assert example.columns == {"task": "QA", "year": "2024", "input text": ""}
    assert example.question() != usable({**row, "year": 2025}, template=template, fields=fields).question()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "a", "response": "b", "inputs": "c"},
            "spec.dataset.template has {input}, but there is no column 'input' "
            "(found: 'instruction', 'response', 'inputs')",
        ),
        ({"instruction": "a", "response": "b", "input": ["c"]}, "'input' is a list, not a string or number"),
        ({"instruction": "a", "response": "b", "input": True}, "'input' is a boolean, not a string or number"),
        ({"instruction": "a", "response": "b", "input": float("inf")}, "'input' is a number, not a string or number"),
        ({"instruction": "a", "response": "b", "input": "\x00"}, "'input' contains a NUL character"),
    ],
)
def test_a_column_of_the_template_that_is_not_there_or_no_text_is_refused(
    row: dict[str, object], expected: str
) -> None:
    assert reason(row, template="{instruction} {input}") == expected


def test_a_template_with_the_response_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.dataset\.template has \{output\}, but that column is the response"):
        RowParser(dataset_spec(template="{instruction} {output}", fields={"response": "output"}))


def test_columns_of_the_template_have_no_meaning_in_other_formats() -> None:
    assert "input" not in RowParser(dataset_spec(format="Text", template="{instruction} {input}")).wanted_fields
