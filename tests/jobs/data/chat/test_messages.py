"""Which fields of conversations are read, in the forms of OpenAI and ShareGPT, and why others are refused."""

import json
from typing import Any

import pytest

from edgetune_jobs.data.chat.messages import Message
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from support.data_rows import dataset_spec

PLACE = Place("rows.jsonl")
CALL = {"type": "function", "function": {"name": "level", "arguments": {"tank": 7}}}
TOOL = {"type": "function", "function": {"name": "level", "parameters": {}}}


def parse(row: dict[str, object], **options: Any) -> Example | BadRow:
    return RowParser(dataset_spec(format="Chat", **options)).parse(RawRow(PLACE, row))


def usable(*messages: object, **columns: object) -> Example:
    example = parse({"messages": list(messages), **columns})
    assert isinstance(example, Example), example
    return example


def reason(*messages: object, **columns: object) -> str:
    bad = parse({"messages": list(messages), **columns})
    assert isinstance(bad, BadRow), bad
    return bad.reason


def turn(role: str, content: object = "x", **fields: object) -> dict[str, object]:
    return {"role": role, "content": content, **fields}


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"text": "b"}, "c"]

    assert usable(turn("user", parts), turn("assistant", "d")).prompt[0].content == "a bc"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "messages[0].content[0].type is 'image_url'; only parts of"),
        ({"type": "input_audio"}, "messages[0].content[0].type is 'input_audio'; only parts of"),
        ({"image": "u"}, "messages[0].content[0].type is null"),
        ({"type": "text", "text": "a", "annotations": [1]}, "messages[0].content[0] has 'annotations', which is not"),
        (5, "messages[0].content[0] is a number"),
    ],
)
def test_parts_that_are_no_text_are_refused(part: object, expected: str) -> None:
    assert reason(turn("user", [part]), turn("assistant")).startswith(expected)


@pytest.mark.parametrize("arguments", [{"tank": 7}, '{"tank": 7}'], ids=["object", "JSON text"])
@pytest.mark.parametrize("content", [None, ""])
def test_an_answer_may_have_tool_calls_instead_of_content(arguments: object, content: object) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "level", "arguments": arguments}}

    example = usable(turn("user"), turn("assistant", content, tool_calls=[call]))

    assert example.response == ""
    assert example.response_fields == {"tool_calls": [{"id": "a", **CALL}]}


def test_null_fields_of_tables_are_absent() -> None:
    example = usable(turn("user", tool_calls=None, name=None), turn("assistant", weight=None, tool_calls=[]))

    assert example.prompt == (Message("user", "x"),)
    assert example.response_fields == {}


def test_the_conversation_ends_with_the_last_answer_that_has_a_weight() -> None:
    example = usable(
        turn("user"), turn("assistant", "wrong", weight=0), turn("user"), turn("assistant", "right", weight=1.0),
        turn("user"), turn("assistant", "wrong again", weight=0),
    )  # fmt: skip

    assert (example.prompt[1].content, example.prompt[1].is_learned) == ("wrong", False)
    assert example.response == "right"
    assert len(example.prompt) == 3


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_are_a_list_or_its_json_text(as_text: bool) -> None:
    example = usable(turn("user"), turn("assistant"), tools=json.dumps([TOOL]) if as_text else [TOOL])

    assert example.tools == (TOOL,)
    assert example.identity() != usable(turn("user"), turn("assistant")).identity()


def test_empty_texts_are_no_tools_and_no_tool_calls() -> None:
    example = usable(turn("user"), turn("assistant", tool_calls=""), tools="")

    assert example.tools == ()
    assert example.response_fields == {}


def test_a_system_message_that_is_in_a_column_too_is_there_once() -> None:
    example = usable(turn("system", "Be brief."), turn("user"), turn("assistant"), system="Be brief.")

    assert [message.content for message in example.prompt] == ["Be brief.", "x"]


def test_sharegpt_is_read() -> None:
    rows = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps({"name": "level", "arguments": {"tank": 7}})},
        {"from": "observation", "value": "80 %"},
        {"from": "gpt", "value": "Nearly full.", "weight": 1},
    ]

    example = parse({"conversations": rows, "system": "You know tanks.", "id": 5})

    assert isinstance(example, Example)
    assert [(message.role, message.content) for message in example.prompt] == [
        ("system", "You know tanks."),
        ("user", "a"),
        ("assistant", ""),
        ("tool", "80 %"),
    ]
    assert example.prompt[2].fields == {"tool_calls": [CALL]}
    assert example.response == "Nearly full."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"weight": 0}, "all assistant messages of 'messages' have weight 0, so there is nothing to learn"),
        ({"weight": 0.5}, "messages[1].weight must be 0 (not learned) or 1 (learned)"),
        ({"weight": True}, "messages[1].weight must be 0 (not learned) or 1 (learned)"),
        ({"tool_calls": {}}, "messages[1].tool_calls is an object, not a list"),
        ({"tool_calls": "level()"}, "messages[1].tool_calls is a string, but invalid JSON"),
        ({"tool_calls": [{"id": "a"}]}, "messages[1].tool_calls[0] is not an object with a function that has name"),
        (
            {"tool_calls": [{"function": {"name": "level", "arguments": "tank 7"}}]},
            "messages[1].tool_calls[0].function.arguments is a string, but invalid JSON",
        ),
        (
            {"tool_calls": [{"function": {"name": "level", "arguments": "[7]"}}]},
            "messages[1].tool_calls[0].function.arguments is a list, not an object",
        ),
        ({"reasoning_content": "a\x00"}, "messages[1].reasoning_content contains a NUL character"),
        ({"content": None}, "messages[1].content is empty"),
    ],
)
def test_an_answer_that_cannot_be_learned_is_refused(answer: dict[str, object], expected: str) -> None:
    assert reason(turn("user"), {**turn("assistant"), **answer}).startswith(expected)


def test_other_messages_and_columns_that_cannot_be_used_are_refused() -> None:
    assert reason(turn("user", weight=1), turn("assistant")) == (
        "messages[0].weight is 1, but only assistant messages are learned"
    )
    assert reason(turn("user", tool_calls=[CALL]), turn("assistant")) == (
        "messages[0].tool_calls is in a user message; only assistant messages call tools"
    )
    assert reason(turn("user"), turn("assistant"), tools={"level": {}}) == "'tools' is an object, not a list of objects"
    assert reason(turn("user"), turn("assistant"), tools=["level"]) == "'tools' is a list, not a list of objects"
    assert reason(turn("system"), turn("user"), turn("assistant"), system="b").startswith(
        "the row has a system message and another one in the column 'system'"
    )
    nested: object = []
    for _ in range(70):
        nested = [nested]
    assert (
        reason(turn("user"), turn("assistant"), tools=[{"a": nested}]) == "'tools' is nested more than 64 levels deep"
    )
