"""Sources that a namespace may read: outside of the stores, its own folders, and what the profile allows."""

import pytest
from pydantic import TypeAdapter, ValidationError

from edgetune_contract.access.allowed_sources import AllowedSource, refused_sources
from edgetune_contract.spec import Parameters

STORES = ("s3://artifacts/edgetune/", "s3://artifacts/edgetune/large", "s3://bucket")
COMMIT = "0" * 40


def refusal(uri: str, *allowed: str, listed: bool = False, namespace: str = "team-a") -> str:
    """Why a base model is refused; `listed`: whether the profile has a list, even if it is empty."""
    base = {"uri": uri, "revision": COMMIT if uri.startswith("hf://") else ""}
    parameters = Parameters.model_validate({"baseModel": base, "dataset": {"train": {"uri": "file:///train.jsonl"}}})
    return "; ".join(refused_sources(parameters, namespace, STORES, allowed if allowed or listed else None))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://models/llama",
        "s3://artifacts/edgetune-2/team-b/model",
        "s3://artifacts/edgetune/team-a",
        "s3://artifacts/edgetune/team-a/",
        "s3://artifacts/edgetune/team-a/stages/merge/0123/merged",
        "s3://artifacts/edgetune/large/team-a/model",
        "s3://bucket/team-a/model",
        "hf://org/model",
        "file:///store/team-b/model",
    ],
)
def test_a_namespace_reads_outside_of_the_stores_and_in_its_own_folders(uri: str) -> None:
    assert refusal(uri) == ""


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        ("s3://artifacts/edgetune/team-b", "s3://artifacts/edgetune"),
        ("s3://artifacts/edgetune/team-b/stages/prepare/0123/prepared", "s3://artifacts/edgetune"),
        ("s3://artifacts/edgetune/team-a-2/model", "s3://artifacts/edgetune"),
        ("s3://artifacts/edgetune/Team-a/model", "s3://artifacts/edgetune"),
        ("s3://artifacts/edgetune/large/team-b/model", "s3://artifacts/edgetune/large"),
        ("s3://bucket/models/llama", "s3://bucket"),
    ],
)
def test_folders_of_other_namespaces_are_closed(uri: str, store: str) -> None:
    assert refusal(uri) == (
        f"spec.baseModel.uri: {uri} is in the store {store}, of which namespace team-a may only read {store}/team-a/; "
        "copy it there or outside of the store, or ask the platform team to add it to the profile's sources"
    )


@pytest.mark.parametrize(
    "uri", ["s3://artifacts", "s3://artifacts/edgetune", "s3://artifacts/edgetune/", "s3://bucket"]
)
def test_a_folder_with_a_store_in_it_is_closed_whatever_the_profile_allows(uri: str) -> None:
    assert refusal(uri, "s3://*", uri).endswith(
        "/, where the folders of all namespaces are; name a folder outside of it"
    )


def test_a_namespace_with_the_name_of_a_folder_before_another_store_does_not_read_that_store() -> None:
    uri = "s3://artifacts/edgetune/large"

    assert "contains s3://artifacts/edgetune/large/" in refusal(uri, namespace="large")
    assert "is in the store s3://artifacts/edgetune/large" in refusal(f"{uri}/team-b/model", namespace="large")
    assert refusal(f"{uri}/large/model", namespace="large") == ""


@pytest.mark.parametrize(
    ("uri", "entry", "is_allowed"),
    [
        ("s3://models/llama", "s3://models/*", True),
        ("s3://models/llama/8b", "s3://models/*", True),
        ("s3://models/llama", "s3://*", True),
        ("s3://models/llama/", "s3://models/llama", True),
        ("s3://models/llama/8b", "s3://models/llama", False),
        ("s3://models", "s3://models/*", False),
        ("s3://models-2/llama", "s3://models/*", False),
        ("hf://org/model", "hf://*", True),
        ("hf://org/model", "hf://org/*", True),
        ("hf://org-2/model", "hf://org/*", False),
        ("hf://org/model", "s3://*", False),
    ],
)
def test_a_list_closes_everything_that_is_not_in_it(uri: str, entry: str, *, is_allowed: bool) -> None:
    refused = f"spec.baseModel.uri: {uri} is not a source that the profile allows ({entry}); use one of these"

    assert refusal(uri, entry).startswith(refused) is not is_allowed
    assert bool(refusal(uri, entry)) is not is_allowed


def test_own_folders_need_no_entry_and_an_empty_list_closes_the_rest() -> None:
    assert refusal("s3://artifacts/edgetune/team-a/model", listed=True) == ""
    assert "is not a source that the profile allows (none)" in refusal("s3://models/llama", listed=True)


@pytest.mark.parametrize(
    "entry", ["s3://*", "s3://artifacts/*", "s3://artifacts/edgetune/*", "s3://artifacts/edgetune"]
)
def test_a_wide_entry_opens_nothing_in_a_store(entry: str) -> None:
    assert "is in the store s3://artifacts/edgetune" in refusal("s3://artifacts/edgetune/team-b/model", entry)


@pytest.mark.parametrize("entry", ["s3://artifacts/edgetune/shared/*", "s3://artifacts/edgetune/shared/llama"])
def test_an_entry_below_the_store_opens_a_folder_to_all_its_namespaces(entry: str) -> None:
    assert refusal("s3://artifacts/edgetune/shared/llama", entry) == ""
    assert refusal("s3://artifacts/edgetune/shared-2/llama", entry)


def test_every_source_of_an_object_is_checked() -> None:
    uri = "s3://bucket/team-b/x"
    dataset = {"train": {"uri": uri}, "eval": {"uri": uri}}
    parameters = Parameters.model_validate({"baseModel": {"uri": uri}, "dataset": dataset})

    problems = refused_sources(parameters, "team-a", STORES, None)

    paths = ["spec.baseModel.uri", "spec.dataset.train.uri", "spec.dataset.eval.uri"]
    assert [problem.split(": ")[0] for problem in problems] == paths


NEVER_MATCH = [
    "s3://",
    "s3:///models/*",
    "s3:/models/*",
    "s3://Models/*",
    "s3://models/llama*",
    "s3://models/*/llama",
    "s3://models//llama",
    "s3://models/../artifacts/*",
    "s3://models/./llama",
    "s3://models/%2e%2e/*",
    "s3://models/* ",
    "models/*",
    "hf:/organization/*",
    "hf://",
    "hf://organization",
    "hf://organization/name/*",
    "hf://organization/name@main",
    "https://models/llama",
    "file:///models/*",
    "*",
    "",
    7,
]


@pytest.mark.parametrize("entry", NEVER_MATCH)
def test_an_entry_that_no_source_can_match_is_refused_with_the_forms_that_can(entry: object) -> None:
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(AllowedSource).validate_python(entry)

    (problem,) = refusal.value.errors()
    assert problem["msg"] == (
        f"Value error, {entry!r} matches no source; write s3://bucket/folder, s3://bucket/folder/*, "
        "s3://*, hf://organization/name, hf://organization/* or hf://*"
    )


@pytest.mark.parametrize(
    "entry",
    [
        "s3://models",
        "s3://models/.cache/*",
        "s3://models/..a/b",
        "s3://models/a.b/llama/",
        "s3://*",
        "hf://*",
        "hf://o/*",
    ],
)
def test_an_entry_in_one_of_the_forms_is_accepted(entry: str) -> None:
    assert TypeAdapter(AllowedSource).validate_python(entry) == entry
