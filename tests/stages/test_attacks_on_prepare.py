"""Attacks on prepare through the base model, the data and the spec: each is refused by name, and no code runs.

Bombs are in test_prepare_bombs.py, damaged checkpoints in test_checkpoint_check.py, and hostile data files in
test_hostile_files.py.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.errors import StageError
from support.workplace import Workplace, make_workplace

pytestmark = pytest.mark.slow

Attack = Callable[[Workplace], dict[str, Any]]
CHAT = {"dataset": {"template": "ChatTemplate"}}
ESCAPE = "\x1b]0;owned\x07"


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._marker),))


def marker(place: Workplace) -> Path:
    """A folder that exists once code of an attacker has run."""
    return place.folder / "owned"


def base(place: Workplace) -> Path:
    return place.folder / "base"


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def with_code(place: Workplace, name: str) -> None:
    (base(place) / f"{name}.py").write_text(f"import os\nos.mkdir({str(marker(place))!r})\n")


def chat_template(text: str) -> Attack:
    def attack(place: Workplace) -> dict[str, Any]:
        (base(place) / "chat_template.jinja").write_text(text)
        return CHAT

    return attack


def code_of_the_model(place: Workplace) -> dict[str, Any]:
    with_code(place, "modeling_evil")
    edit(base(place) / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Model"}, model_type="evil")
    return {}


def code_of_the_configuration(place: Workplace) -> dict[str, Any]:
    with_code(place, "configuration_evil")
    edit(base(place) / "config.json", auto_map={"AutoConfig": "configuration_evil.Config"}, model_type="evil")
    return {}


def code_of_the_tokenizer(place: Workplace) -> dict[str, Any]:
    with_code(place, "tokenization_evil")
    edit(
        base(place) / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.T", None]},
        tokenizer_class="T",
    )
    (base(place) / "tokenizer.json").unlink()
    return {}


def nested_configuration(place: Workplace) -> dict[str, Any]:
    (base(place) / "config.json").write_text("[" * 10**6)
    return {}


def control_characters(place: Workplace) -> dict[str, Any]:
    edit(base(place) / "config.json", model_type=ESCAPE, architectures=[ESCAPE])
    return {}


def pickled_weights(place: Workplace) -> dict[str, Any]:
    (base(place) / "model.safetensors").unlink()
    (base(place) / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker(place))))
    return {}


def pickled_weights_under_another_name(place: Workplace) -> dict[str, Any]:
    (base(place) / "model.safetensors").write_bytes(pickle.dumps(Evil(marker(place))))
    return {}


def index_out_of_the_folder(place: Workplace) -> dict[str, Any]:
    header_and_data = (base(place) / "model.safetensors").read_bytes()
    (place.folder / "secret.safetensors").write_bytes(header_and_data)
    (base(place) / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (base(place) / "model.safetensors.index.json").write_text(json.dumps(index))
    return {}


def huge_header(place: Workplace) -> dict[str, Any]:
    (base(place) / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return {}


def link_to_a_secret(place: Workplace) -> dict[str, Any]:
    secret = place.folder / "secret.jsonl"
    secret.write_text('{"instruction": "a", "response": "s3cr3t"}\n')
    data = place.folder / "data"
    data.mkdir()
    (data / "train.jsonl").symlink_to(secret)
    return {"dataset": {"train": {"uri": data.as_uri()}}}


def link_of_the_model(place: Workplace) -> dict[str, Any]:
    target = place.folder / "outside.json"
    (base(place) / "config.json").rename(target)
    (base(place) / "config.json").symlink_to(target)
    return {}


def text(content: str | bytes, name: str = "train.jsonl") -> Attack:
    def attack(place: Workplace) -> dict[str, Any]:
        (place.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return {"dataset": {"train": {"uri": f"file://{place.folder}/{name}"}}}

    return attack


def template(value: str) -> Attack:
    return lambda _: {"dataset": {"template": value}}


ATTACKS: dict[str, tuple[Attack, str]] = {
    "templates: Python's classes": (
        chat_template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
        "access to attribute '__class__' of 'list' object is unsafe",
    ),
    "templates: a file": (
        chat_template("{% include '/etc/passwd' %}"),
        "the base model's chat template fails on it: no loader for this environment specified",
    ),
    "templates: an import": (
        chat_template("{% import 'os' as os %}{{ os.mkdir('/tmp/x') }}"),
        "the base model's chat template fails on it: no loader for this environment specified",
    ),
    "templates: attributes of a column": (
        template("{instruction}{instruction.__class__.__init__}"),
        "there is no column 'instruction.__class__.__init__'",
    ),
    "tokenizers: code": (code_of_the_tokenizer, "has no tokenizer (none of tokenizer.json, "),
    "config: code of the model": (code_of_the_model, "which Edgetune never runs (trust_remote_code is off)"),
    "config: code of the configuration": (
        code_of_the_configuration,
        "which Edgetune never runs (trust_remote_code is off)",
    ),
    "config: nesting": (nested_configuration, "config.json is invalid JSON: nested too deeply"),
    "config: a name that a terminal obeys": (
        control_characters,
        "unsupported architecture '\\x1b]0;owned\\x07'",
    ),
    "weights: a pickle": (pickled_weights, "which Edgetune never loads because a pickle can run code"),
    "weights: a pickle under another name": (
        pickled_weights_under_another_name,
        "model.safetensors is not a valid safetensors file",
    ),
    "weights: an index that leaves the folder": (
        index_out_of_the_folder,
        "lists 1 missing file (../secret.safetensors)",
    ),
    "weights: a header of exabytes": (huge_header, "the header length is 4,611,686,018,427,387,904 bytes"),
    "data: nesting": (
        text('{"instruction": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
        "train.jsonl line 1: invalid JSON: nested too deeply",
    ),
    "data: a number of a million digits": (
        text('{"instruction": ' + "9" * 10**6 + ', "response": "a"}\n'),
        "train.jsonl line 1: invalid JSON: ",
    ),
    "data: not UTF-8": (
        text(b'{"instruction": "\xff", "response": "a"}\n'),
        "train.jsonl line 1: invalid UTF-8: byte 0xFF",
    ),
    "data: a field twice": (
        text('{"instruction": "a", "instruction": "b", "response": "c"}\n'),
        "train.jsonl line 1: invalid JSON: duplicate field 'instruction'",
    ),
    "local files: a link in the data": (link_to_a_secret, "is a link that leaves the folder"),
    "local files: a link in the model": (link_of_the_model, "is a link that leaves the folder"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_prepare_is_refused_by_name_and_runs_no_code(tmp_path: Path, name: str) -> None:
    attack, message = ATTACKS[name]
    place = make_workplace(tmp_path)
    spec = attack(place)

    with pytest.raises(StageError) as refused:
        place.run(**spec)

    assert message in str(refused.value)
    assert not marker(place).exists()
