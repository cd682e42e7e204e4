"""The generated files: the schema, models that the generator refuses, the reference, and the command."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from edgetune_contract.schema import Model, Rule
from edgetune_contract.stages import ExitCode
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.generate import __main__ as generate
from edgetune_operator.generate.crd import NotStructural, custom_resource_definition, object_schema, structural_schema
from edgetune_operator.generate.reference import REASONS, reference
from support.apiserver import REPOSITORY
from support.builders import lora_fine_tune


def nodes(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node of a structural schema with its path."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if key in node:
            yield from nodes(node[key], path + suffix)


@pytest.fixture(scope="module")
def fields() -> dict[str, Mapping[str, Any]]:
    """Every node of spec and status, by path."""
    properties = object_schema()["properties"]
    return dict([*nodes(properties["spec"], "spec"), *nodes(properties["status"], "status")])


def test_every_field_of_spec_and_status_has_a_description(fields: Mapping[str, Mapping[str, Any]]) -> None:
    items = ("[]", ".*")
    assert [path for path, node in fields.items() if not node.get("description") and not path.endswith(items)] == []


def test_descriptions_are_sentences_on_one_line(fields: Mapping[str, Mapping[str, Any]]) -> None:
    descriptions = {path: node["description"] for path, node in fields.items() if "description" in node}

    assert [path for path, text in descriptions.items() if "\n" in text or not text.endswith(".")] == []


def test_every_node_has_one_type_or_is_known_to_have_none(fields: Mapping[str, Mapping[str, Any]]) -> None:
    typeless = {path for path, node in fields.items() if "type" not in node}

    assert typeless == {
        "spec.lora.targetModules",
        "spec.training.microBatchSize",
        "spec.training.gpus",
        "spec.quantization.formats",
        "spec.evaluation.gates.maxEdgeBytes",
        "spec.evaluation.edge.cpu",
        "spec.evaluation.edge.memory",
        "spec.evaluation.edge.maxPeakMemory",
    }


def test_every_text_list_and_number_of_the_spec_is_bounded(fields: Mapping[str, Mapping[str, Any]]) -> None:
    bounds = {
        "string": ("maxLength", "enum", "pattern"),
        "array": ("maxItems",),
        "integer": ("maximum",),
        "number": ("maximum",),
    }
    spec = {path: node for path, node in fields.items() if path.startswith("spec") and node.get("type") in bounds}

    assert [path for path, node in spec.items() if not any(bound in node for bound in bounds[node["type"]])] == []


def test_patterns_are_anchored_and_valid_in_re2(fields: Mapping[str, Mapping[str, Any]]) -> None:
    patterns = {path: node["pattern"] for path, node in fields.items() if "pattern" in node}

    assert len(patterns) > 5
    assert [path for path, text in patterns.items() if not (text.startswith("^") and text.endswith("$"))] == []
    assert [path for path, text in patterns.items() if re.search(r"\(\?[=!<]|\\[1-9]", text)] == []


def test_every_list_has_a_merge_type(fields: Mapping[str, Mapping[str, Any]]) -> None:
    types = {path: node["x-kubernetes-list-type"] for path, node in fields.items() if node.get("type") == "array"}

    assert types["spec.evaluation.models"] == "set"
    assert {path for path, list_type in types.items() if list_type == "map"} == {
        "status.conditions",
        "status.stages",
        "status.candidates",
        "status.artifacts",
        "status.gpu.stages",
    }
    assert fields["status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_the_defaults_are_those_of_the_model(fields: Mapping[str, Mapping[str, Any]]) -> None:
    spec = lora_fine_tune().build()["spec"]
    model = LoraFineTuneSpec.model_validate(spec).model_dump(mode="json", exclude_none=True)

    def filled(value: dict[str, Any], path: str) -> dict[str, Any]:
        """The API server's defaulting: a missing field gets its default, then its own fields get theirs."""
        for name in fields[path].get("properties", {}):
            default = fields[f"{path}.{name}"].get("default")
            if name not in value and default is not None:
                value[name] = json.loads(json.dumps(default))
            if isinstance(value.get(name), dict):
                filled(value[name], f"{path}.{name}")
        return value

    assert filled(spec, "spec") == model


def test_status_has_no_default_except_the_one_that_marks_a_new_object(fields: Mapping[str, Mapping[str, Any]]) -> None:
    defaults = {
        path: node["default"] for path, node in fields.items() if path.startswith("status") and "default" in node
    }

    assert defaults == {"status": {"observedGeneration": -1}}


def test_the_crd_serves_one_version_with_a_status_and_a_required_spec() -> None:
    crd = custom_resource_definition()

    (version,) = crd["spec"]["versions"]
    assert crd["metadata"]["name"] == "lorafinetunes.edgetune.dev"
    assert crd["spec"]["names"]["shortNames"] == ["lft"]
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert version["subresources"] == {"status": {}}
    assert version["schema"]["openAPIV3Schema"]["required"] == ["spec"]


def test_the_rules_of_the_models_are_in_the_schema(fields: Mapping[str, Mapping[str, Any]]) -> None:
    rules = {
        path: node["x-kubernetes-validations"] for path, node in fields.items() if "x-kubernetes-validations" in node
    }

    sources = {"spec.baseModel", "spec.dataset.train", "spec.dataset.eval"}
    assert rules.keys() == {"spec.dataset", "spec.evaluation", "spec.training", *sources}
    assert rules["spec.training"] == [
        {
            "rule": "type(self.microBatchSize) != int || self.microBatchSize <= self.batchSize",
            "message": "microBatchSize must be at most batchSize",
        },
        {
            "rule": "type(self.gpus) != int || self.batchSize % self.gpus == 0",
            "message": "batchSize must be a multiple of gpus, which share the examples of a step",
        },
        {
            "rule": "self.attention != 'Varlen' || self.layout != 'Padded'",
            "message": "attention: Varlen requires layout: PaddingFree or Packed",
        },
        {
            "rule": "!has(self.evaluation) || !has(self.maxSteps) || self.evaluation.everySteps <= self.maxSteps",
            "message": "evaluation.everySteps must be at most maxSteps: otherwise only the last step is evaluated",
        },
    ]


class Leaf(Model):
    """A leaf."""

    size: int = 1


class Shapes(Model):
    """Shapes that pydantic writes differently from the API server."""

    exclusive: Annotated[float, Field(gt=0, lt=1)]
    constant: Literal["only"] = "only"
    optional: Leaf | None = None
    nested: Leaf = Leaf(size=5)
    by_name: dict[str, Leaf] = {}

    rules = (Rule(cel="self.exclusive < 1.0", holds=lambda self: self.exclusive < 1, message="too much"),)


def test_json_schema_is_rewritten_as_a_structural_schema() -> None:
    leaf = {"description": "A leaf.", "type": "object", "properties": {"size": {"type": "integer", "default": 1}}}

    assert structural_schema(Shapes, "spec") == {
        "description": "Shapes that pydantic writes differently from the API server.",
        "type": "object",
        "required": ["exclusive"],
        "x-kubernetes-validations": [{"rule": "self.exclusive < 1.0", "message": "too much"}],
        "properties": {
            "exclusive": {
                "type": "number",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 1,
                "exclusiveMaximum": True,
            },
            "constant": {"type": "string", "default": "only", "enum": ["only"]},
            "optional": leaf,
            "nested": leaf | {"default": {"size": 5}},
            "byName": {"type": "object", "default": {}, "additionalProperties": leaf},
        },
    }


class Recursive(Model):
    """Contains itself."""

    child: "Recursive | None" = None


class Inner(Model):
    """Has a union."""

    value: int | str


class Union(Model):
    """Contains a model with a union."""

    inner: Inner


class Pair(Model):
    """Has a tuple of two types."""

    pair: tuple[int, str]


class Untyped(Model):
    """Has a value of any type."""

    value: Any


class UntypedList(Model):
    """Has a list without an item type."""

    values: list[Any]


class UntypedMap(Model):
    """Has a map without a value type."""

    values: dict[str, Any]


class Foreign(Model):
    """Has a keyword that the API server does not support."""

    value: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (Recursive, "spec.child: Recursive contains itself"),
        (Union, "spec.inner.value: a structural schema has no union of types"),
        (Pair, "spec.pair: a structural schema has no prefixItems"),
        (Untyped, "spec.value: the type is missing"),
        (UntypedList, "spec.values[]: the type is missing"),
        (UntypedMap, "spec.values: a map needs a type for its values"),
        (Foreign, "spec.value: a structural schema has no contentEncoding"),
    ],
)
def test_what_the_api_server_cannot_check_fails_with_its_path(model: type[Model], problem: str) -> None:
    with pytest.raises(NotStructural, match=f"^{re.escape(problem)}$"):
        structural_schema(model, "spec")


def test_the_generated_files_are_up_to_date() -> None:
    assert generate.differences(REPOSITORY, generate.generated_files()) == ""


def test_generated_yaml_parses_to_the_same_values_without_anchors() -> None:
    text = generate.to_yaml(custom_resource_definition())

    assert yaml.safe_load(text) == custom_resource_definition()
    assert text.startswith("# Generated by `make generate`; do not edit.\n")
    assert not re.search(r"[&*]id\d", text)


def test_the_command_writes_files_and_then_finds_them_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"docs/page.md": "one\ntwo\n"}

    missing = generate.run(files, ["--check"])
    written = generate.run(files, [])
    current = generate.run(files, ["--check"])

    assert (missing, written, current) == (1, 0, 0)
    assert capsys.readouterr().out == "wrote docs/page.md\n"


def test_an_edited_file_is_reported_as_a_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("one\nzwei\n", encoding="utf-8")

    assert generate.run({"page.md": "one\ntwo\n"}, ["--check"]) == 1

    output = capsys.readouterr().err
    assert "-zwei\n+two\n" in output
    assert output.endswith("Generated files are out of date: run `make generate`.\n")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "one\nzwei\n"


def test_the_reference_names_every_field_exit_code_and_reason(fields: Mapping[str, Mapping[str, Any]]) -> None:
    page = reference()

    paths = [path for path in fields if path not in ("spec", "status") and not path.endswith(("[]", ".*"))]
    assert [path for path in paths if f"| `{path}` |" not in page] == []
    assert [code for code in ExitCode if f"| {code.value} | `{code.reason}` |" not in page] == []
    assert [reason for reason in REASONS if f"| `{reason}` |" not in page] == []


def test_the_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    tables = [block.splitlines() for block in reference().split("\n\n") if block.startswith("|")]

    for table in tables:
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in table} == {table[0].count("|")}
