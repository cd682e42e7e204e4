"""The JSON Schema for editors, in kubeconform itself: it finds what `edgetune validate` finds, except rules in CEL."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from edgetune_contract.schema import Model
from edgetune_operator.api import names
from edgetune_operator.api.spec_check import check_object
from edgetune_operator.generate.editor_schema import SCHEMA_PATH, editor_schema
from support.apiserver import REPOSITORY
from support.builders import lora_fine_tune
from support.verdicts import VERDICTS

KUBECONFORM = find("kubeconform")
needs_kubeconform = pytest.mark.skipif(
    KUBECONFORM is None, reason="no kubeconform in the cache folder: run make programs"
)
CONVENTION = f"{REPOSITORY}/schemas/{{{{.Group}}}}/{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json"


def kubeconform(file: Path, *options: str) -> dict[str, Any]:
    """Its report on all documents of a file."""
    command = [str(KUBECONFORM), "-strict", "-verbose", "-output", "json", "-schema-location", CONVENTION, *options]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def verdicts(tmp_path: Path, documents: Mapping[str, Any]) -> dict[str, str]:
    """Messages of kubeconform by case; empty for a valid object."""
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(documents.values(), allow_unicode=True, sort_keys=False))
    resources = kubeconform(file)["resources"]
    assert len(resources) == len(documents)
    found = {}
    for resource in resources:
        assert resource["status"] in ("statusValid", "statusInvalid"), resource
        found[resource["name"]] = resource["msg"]
    return {case: found[document["metadata"]["name"]] for case, document in documents.items()}


def named(number: int, document: dict[str, Any]) -> dict[str, Any]:
    return document | {"metadata": {"name": f"object-{number}"}}


def rules(model: type[Model] = Model) -> Iterator[str]:
    """Messages of all rules in CEL."""
    yield from (rule.message for rule in model.rules)
    for each in model.__subclasses__():
        yield from rules(each)


@needs_kubeconform
def test_kubeconform_gives_the_models_verdict_except_about_rules_in_cel(tmp_path: Path) -> None:
    found = verdicts(tmp_path, {each.case: named(number, each.object) for number, each in enumerate(VERDICTS)})

    of_rules = [f": {message}" for message in rules()]
    expected = {each.case: each.valid or any(rule in each.problem for rule in of_rules) for each in VERDICTS}
    wrong = {case: found[case] or "valid" for case, valid in expected.items() if bool(found[case]) is valid}
    assert wrong == {}


def edited(**changes: Any) -> dict[str, Any]:
    """An object with other fields beside its spec."""
    document = deepcopy(lora_fine_tune().build())
    document["metadata"] = {"name": "a", **changes.pop("metadata", {})}
    return {name: value for name, value in {**document, **changes}.items() if value is not None}


OUTSIDE_OF_SPEC = {
    "an annotation that is a number": edited(metadata={"annotations": {names.RETRY_REQUESTED_ANNOTATION: 3}}),
    "a label that is a boolean": edited(metadata={"labels": {"live": True}}),
    "annotations that are a list": edited(metadata={"annotations": ["a"]}),
    "a misspelled field of metadata": edited(metadata={"nmaespace": "a"}),
    "a namespace with a dot": edited(metadata={"namespace": "a.b"}),
    "an unknown field": edited(sepc={}),
    "no spec": edited(spec=None),
    "a spec that is a text": edited(spec="big"),
}


@needs_kubeconform
@pytest.mark.parametrize("case", OUTSIDE_OF_SPEC)
def test_kubeconform_finds_what_is_wrong_outside_of_the_spec(tmp_path: Path, case: str) -> None:
    document = OUTSIDE_OF_SPEC[case]

    assert check_object(document)
    assert verdicts(tmp_path, {case: document})[case]


@needs_kubeconform
def test_an_object_as_kubectl_prints_it_is_valid(tmp_path: Path) -> None:
    document = edited(
        metadata={"namespace": "team-a", "uid": "1", "generation": 3, "managedFields": [{}], "annotations": {"a": ""}},
        status={"phase": "Succeeded"},
    )

    assert check_object(document) == ()
    assert verdicts(tmp_path, {"printed": document}) == {"printed": ""}


def test_the_shipped_file_is_the_generated_one_and_its_patterns_have_no_escape_of_one_language() -> None:
    text = (REPOSITORY / SCHEMA_PATH).read_text(encoding="utf-8")

    assert text == editor_schema()
    assert "\\x{" not in text
