"""The pages in docs/ agree with the code."""

import re

import yaml
from prometheus_client.metrics import MetricWrapperBase

from edgetune_contract.stages import INTERNAL_ERROR, ExitCode
from edgetune_operator import telemetry
from edgetune_operator.api.profiles.profile import Image, Profile, ProfileStore
from edgetune_operator.api.profiles.resources import DEFAULT_RESOURCES
from edgetune_operator.api.reasons import BLOCKING, Reason
from edgetune_operator.api.spec_check import check_object
from edgetune_operator.decisions.accounting.limits import MAX_INTERRUPTIONS
from edgetune_operator.generate.reference import REASONS
from support.apiserver import REPOSITORY
from support.file_map import PACKAGES, PAGE, file_map, page

OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Text of a section of the operations page."""
    return OPERATIONS.partition(f"## {title}\n")[2].partition("\n## ")[0]


def named(row: str) -> set[str]:
    """Names in code style in a row of a table."""
    return set(re.findall(r"`([^`]+)`", row))


def test_every_metric_of_the_operator_is_described_with_its_labels() -> None:
    described = {name for row in section("Metrics").splitlines() if row.startswith("| `") for name in named(row)}
    metrics = [each for each in vars(telemetry).values() if isinstance(each, MetricWrapperBase)]
    families = [(family, metric._labelnames) for metric in metrics for family in metric.describe()]
    families += [(family, tuple(vars(family)["_labelnames"])) for family in telemetry.OBJECT_METRICS.collect()]
    served = set()
    for family, names in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(names)
        served.add(f"{name}{{{labels}}}" if labels else name)

    assert served <= described
    assert {name for name in described if name.startswith("edgetune_")} == served


def test_every_alert_of_the_chart_is_described() -> None:
    groups = yaml.safe_load((REPOSITORY / "charts/edgetune/files/rules.yaml").read_text(encoding="utf-8"))["groups"]
    described = {name for row in section("Metrics").splitlines() if row.startswith("| `E") for name in named(row)}

    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == {
        name for name in described if name.startswith("Edgetune")
    }


def test_every_reason_has_a_meaning_in_the_reference() -> None:
    assert set(REASONS) == set(Reason)


def test_the_page_says_what_to_do_for_every_reason_and_for_no_other() -> None:
    nothing_to_do = {"Published", "Pinned", "Succeeded", "Cached", "MergeNotKept", "JobRunning", "Resumed"}
    nothing_to_do |= {"CleaningUp", "CleanedUp", "ArtifactsRetained"}
    by_exit_code = {code.reason for code in ExitCode if code is not ExitCode.DONE} | {INTERNAL_ERROR}
    words_of_the_cluster = {
        *("BackoffLimitExceeded", "ContainerCreating", "PodFailurePolicy"),
        *("StartError", "UnexpectedAdmissionError", "Unschedulable"),
    }
    rows = [row for row in section("Reasons, and what to do").splitlines() if row.startswith("| `")]
    explained = [name for row in rows for name in named(row.partition(" | ")[0])]

    assert set(explained) == (set(Reason) - nothing_to_do) | BLOCKING | by_exit_code | words_of_the_cluster
    assert len(explained) == len(set(explained))
    assert f"more than {MAX_INTERRUPTIONS} times" in OPERATIONS
    assert f"more than {MAX_INTERRUPTIONS} times" in REASONS[Reason.INTERRUPTED_TOO_OFTEN]


def test_every_field_of_a_profile_is_described_with_its_default() -> None:
    rows = {name: row for row in OPERATIONS.splitlines() if row.startswith("| `") for name in named(row)}
    paths = [
        *(f"store.{field.alias}" for field in ProfileStore.model_fields.values()),
        *(f"image.{field.alias}" for field in Image.model_fields.values()),
        *(
            str(field.alias)
            for name, field in Profile.model_fields.items()
            if name not in ("store", "image", "resources")
        ),
    ]

    assert [path for path in paths if path not in rows] == []
    for name in ("termination_grace_period_seconds", "ttl_seconds_after_finished"):
        field = Profile.model_fields[name]
        assert f"`{field.default}`" in rows[str(field.alias)]


def test_the_default_resources_are_those_of_the_code() -> None:
    rows = {name: row for row in OPERATIONS.splitlines() if row.startswith("| `") for name in named(row)}
    for stage, resources in DEFAULT_RESOURCES.items():
        _, _, requests, limits, _ = rows[stage].split("|")
        assert all(str(quantity) in requests for quantity in resources.requests.values()), stage
        assert str(resources.limits.get("memory", "memory by the model")) in limits, stage
        assert ("memory by the model" in requests) is ("memory" not in resources.requests), stage
        assert ("nvidia.com/gpu" in requests) is ("nvidia.com/gpu" in resources.requests), stage


def test_the_requests_by_the_size_of_the_model_are_those_of_the_golden_jobs() -> None:
    golden = yaml.safe_load((REPOSITORY / "tests" / "golden" / "resources.yaml").read_text(encoding="utf-8"))
    rows = [row for row in OPERATIONS.splitlines() if row.startswith(("| SmolLM2", "| Llama"))]

    for row, stages in zip(rows, golden.values(), strict=True):
        asked = [stages[stage]["requests"] for stage in ("train", "merge", "evaluate")]
        cells = [f"{each['memory']}, disk {each['ephemeral-storage']}" for each in asked]
        assert row.split("|")[2:-1] == [f" {cell} " for cell in cells], row
        assert stages["quantize"] == stages["merge"]


def test_the_example_is_a_legal_object() -> None:
    page = section("What a user applies and sees")
    document = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])

    assert check_object(document) == ()


def test_the_file_map_has_every_module_of_the_packages() -> None:
    modules = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    captions = {line.split(maxsplit=1)[0]: line for line in file_map().splitlines() if line.strip()}

    assert page() == PAGE.read_text(encoding="utf-8"), "run make generate"
    assert {path.name for path in modules} - {"__init__.py"} <= set(captions)
    assert [line for line in captions.values() if len(line.split()) == 1 and line != "```"] == []


def test_every_file_in_the_architecture_exists() -> None:
    table = ARCHITECTURE.partition("## Where to find what")[2].partition("\n## ")[0]
    for row in (row for row in table.splitlines() if row.startswith("| ") and "`" in row):
        folder = REPOSITORY
        for name in re.findall(r"`([^`]+)`", row):
            path = REPOSITORY / name if "/" in name else folder / name
            assert path.exists(), name
            folder = path if path.is_dir() else path.parent


def test_times_in_the_pages_have_the_form_that_the_commands_print() -> None:
    pages = [each for folder in ("docs", "examples") for each in (REPOSITORY / folder).rglob("*.md")]
    wrong = [str(each) for each in pages if "+00:00" in each.read_text(encoding="utf-8")]

    assert wrong == []
