"""prepare with small files that would compute without end or fill the memory: each ends within limits, by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.models.trial.process import Limits, shared_trial
from support.workplace import Workplace, make_workplace

CHAT = {"template": "ChatTemplate"}
LIMITS = Limits(cpu_seconds=2, memory_bytes=500 * 2**20)
ROW = "on train.jsonl line 1; use another base model, or change this row"
REPAIR = "; save or copy the model again, or use one that this version of transformers supports"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setattr(shared_trial(), "limits", LIMITS)
    return make_workplace(tmp_path)


def edit(workplace: Workplace, name: str, **fields: Any) -> None:
    path = workplace.folder / "base" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def template(text: str) -> Callable[[Workplace], None]:
    def write(workplace: Workplace) -> None:
        (workplace.folder / "base" / "chat_template.jinja").write_text(text)

    return write


def tokenizer(**fields: Any) -> Callable[[Workplace], None]:
    return lambda workplace: edit(workplace, "tokenizer.json", **fields)


def config(**fields: Any) -> Callable[[Workplace], None]:
    return lambda workplace: edit(workplace, "config.json", **fields)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(x='aa') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
PREPEND = {"type": "Prepend", "prepend": "a" * 1_000_000}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (template(LOOP), f"spec.baseModel: its chat template or tokenizer takes more than 1 s of CPU time {ROW}"),
        (template(DOUBLE), f"spec.baseModel: its chat template or tokenizer takes more than 0.5 GiB of memory {ROW}"),
        (template("{{ 'a' * 10000000000 }}"), f"takes more than 0.5 GiB of memory {ROW}"),
        (
            tokenizer(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 5}),
            f"spec.baseModel: its chat template or tokenizer takes more than 0.5 GiB of memory {ROW}",
        ),
        (tokenizer(normalizer={"type": "Sequence", "normalizers": [PREPEND] * 400}), "of memory"),
        (
            config(num_labels=10**9),
            f"loading its config.json takes more than 0.5 GiB of memory{REPAIR}",
        ),
        (config(num_hidden_layers=10**6), "num_hidden_layers in config.json is 1,000,000, but must be from 1 to 1,000"),
        (config(vocab_size=2 * 10**9), "but config.json says [2000000000, 8]"),
    ],
    ids=["loop", "double", "multiply", "normalizer", "prepend", "labels", "layers", "vocabulary"],
)
def test_a_bomb_in_the_model_ends_within_the_limits_by_its_name(
    workplace: Workplace, make: Callable[[Workplace], None], message: str
) -> None:
    make(workplace)

    assert message in workplace.refusal(dataset=CHAT)


def test_a_row_on_which_the_tokenizer_fails_is_named(workplace: Workplace) -> None:
    """A regular expression that backtracks: the library gives up with an error."""
    pattern = {"type": "Split", "pattern": {"Regex": "(?=(x+)+y)x"}, "behavior": "Isolated", "invert": False}
    tokenizer(pre_tokenizer=pattern)(workplace)
    rows: list[dict[str, object]] = [{"instruction": f"question {n}", "response": "answer"} for n in range(30)]
    rows[6] = {"instruction": "x" * 2000, "response": "answer"}
    workplace.write("train.jsonl", rows)

    refusal = workplace.refusal()

    assert refusal.endswith(
        "spec.dataset.train: train.jsonl line 7: the base model's tokenizer fails: Onig: Regex search error: "
        "retry-limit-in-match over"
    )


def test_code_that_the_configuration_chooses_is_not_used_and_named(workplace: Workplace) -> None:
    from edgetune_jobs.models.libraries import load_config

    edit(workplace, "config.json", attn_implementation="org/kernel", _experts_implementation={"": "org/experts"})

    output, _ = workplace.run()
    loaded = load_config(workplace.folder / "base")

    assert output.warnings[0] == (
        "the base model's config.json chooses code, which is not used: attn_implementation: org/kernel, "
        "_experts_implementation: {'': 'org/experts'}"
    )
    assert (loaded._attn_implementation, loaded._experts_implementation) == (None, None)
