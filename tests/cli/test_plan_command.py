"""`edgetune plan` for an object of this machine; its decisions are tested in operator/decisions."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.planning.reports import _plain
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from support.builders import lora_fine_tune
from support.model_shapes import MODELS
from support.scenario import Scenario

NO_GATE = (
    "Warning: spec.evaluation.gates has no gate on the score (minScore, minImprovement, maxDrop), so a model is "
    "published whatever its score"
)


def plan(
    folder: Path, *options: str, profile: str = "default", suspend: bool = False, gates: dict[str, float] | None = None
) -> Result:
    document = lora_fine_tune().with_spec("profile", profile).with_spec("suspend", suspend).build()
    document["spec"]["evaluation"] = {"gates": gates or {}}
    document["metadata"] = {"name": "sensor-faults", "namespace": "team-a"}
    (folder / "object.yaml").write_text(yaml.safe_dump(document))
    arguments = ["plan", "-f", str(folder / "object.yaml"), "--workdir", str(folder / "home"), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("options", [(), ("--store",)])
def test_before_the_first_run_every_stage_has_a_line_and_nothing_is_written(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = plan(tmp_path, *options)

    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "prepare   run    never finished",
        *(
            f"{stage:9} run    unless its output for the inputs that prepare finds is in the store"
            for stage in ("train", "merge", "quantize", "evaluate", "publish")
        ),
        NO_GATE,
    ]
    assert not (tmp_path / "home" / "objects").exists()


def test_a_work_folder_beside_the_object_is_named_if_the_object_was_run_there(tmp_path: Path) -> None:
    plan(tmp_path)
    before = plan(tmp_path).stderr
    document = yaml.safe_load((tmp_path / "object.yaml").read_text())
    key = Key("team-a", "sensor-faults")
    ObjectFolder(tmp_path / ".edgetune" / "objects").apply(key, document["spec"], retry="")

    done = plan(tmp_path)

    hint = f"run it first, or give --workdir {tmp_path}/.edgetune, where it was run"
    assert before == ""
    assert done.stderr.strip() == f"team-a/sensor-faults was not run in {tmp_path}/home: {hint}"


def test_requests_are_said_to_be_those_in_a_cluster(tmp_path: Path) -> None:
    """A run on this machine requests nothing."""
    ran = Scenario(lora_fine_tune())
    ran.reconcile()
    ran.finish(ran.simulated_result(ran.request).model_copy(update={"metrics": dict(MODELS["Llama-3.1-8B"])}))
    ran.reconcile()
    document = ran.cluster.document
    document["metadata"] |= {"name": "sensor-faults", "namespace": "team-a"}
    ObjectFolder(tmp_path / "home" / "objects").write(Key("team-a", "sensor-faults"), document)

    lines = plan(tmp_path).stdout.splitlines()

    merge = next(line for line in lines if line.startswith("merge"))
    assert merge.endswith(" (in a cluster: requests 2Gi memory, 2Gi disk)")


def test_a_gate_on_the_score_leaves_nothing_to_warn_about(tmp_path: Path) -> None:
    assert "Warning" not in plan(tmp_path, gates={"minScore": 0.8}).stdout


@pytest.mark.parametrize("installed", [False, True])
def test_what_prepare_refuses_because_this_machine_lacks_llama_cpp_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("edgetune_jobs.models.quantization.llama_cpp.is_installed", lambda: installed)
    document = lora_fine_tune().with_spec("quantization", {"formats": ["GGUF-Q8_0", "GGUF-Q4_K_M"]}).build()
    document["spec"]["evaluation"] = {"edge": {"memory": "1Gi"}, "gates": {"minScore": 0.5}}
    document["metadata"] = {"name": "sensor-faults", "namespace": "team-a"}
    (tmp_path / "object.yaml").write_text(yaml.safe_dump(document))
    command = ["plan", "-f", str(tmp_path / "object.yaml"), "--workdir", str(tmp_path / "home")]

    here = CliRunner().invoke(app, command, catch_exceptions=False)
    in_a_cluster = CliRunner().invoke(app, [*command, "--from", str(tmp_path / "object.yaml")], catch_exceptions=False)

    warnings = [line for line in here.stdout.splitlines() if line.startswith("Warning")]
    assert [line.partition(": ")[2].partition(", which")[0] for line in warnings] == (
        []
        if installed
        else [
            "spec.quantization.formats[1]: GGUF-Q4_K_M is written by llama.cpp",
            "spec.evaluation.edge: GGUF-Q8_0 needs llama.cpp",
        ]
    )
    assert all(line.endswith("a run on this machine fails here") for line in warnings)
    assert "Warning" not in in_a_cluster.stdout


@pytest.mark.parametrize("installed", [False, True])
def test_a_format_that_its_runtime_cannot_load_on_this_machine_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("edgetune_jobs.models.quantization.llama_cpp.is_installed", lambda: installed)
    document = lora_fine_tune().with_spec("quantization", {"formats": ["GGUF-Q8_0", "BitsAndBytesInt8"]}).build()
    document["spec"]["evaluation"] = {"gates": {"minScore": 0.5}}
    document["metadata"] = {"name": "sensor-faults", "namespace": "team-a"}
    (tmp_path / "object.yaml").write_text(yaml.safe_dump(document))

    command = ["plan", "-f", str(tmp_path / "object.yaml"), "--workdir", str(tmp_path / "home")]
    lines = CliRunner().invoke(app, command, catch_exceptions=False).stdout.splitlines()

    why = ": llama.cpp is not installed: `make llama-cpp`"
    warnings = [line.partition(why)[0] for line in lines if "runtime" in line]
    assert warnings == ([] if installed else ["Warning: edge-gguf-q8_0 is not loaded by its runtime here"])


def test_an_outcome_other_than_a_publication_is_printed_last(tmp_path: Path) -> None:
    suspended, unknown = plan(tmp_path, suspend=True), plan(tmp_path, profile="a100")

    assert suspended.stdout.splitlines()[-1] == (
        "Suspended: spec.suspend is true; set it to false to continue with prepare"
    )
    assert unknown.stdout.splitlines()[-1] == (
        "Stalled: spec.profile: profile 'a100' not found; namespace team-a may use default"
    )


def test_a_work_folder_that_is_a_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")

    done = plan(tmp_path)

    assert (done.exit_code, "Not a directory" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


RECIPE = """apiVersion: edgetune.dev/v1alpha1
kind: LoraFineTune
metadata: {name: NAME, namespace: team-a}
spec:
  baseModel: {uri: s3://models/base}
  profile: a100
  dataset: {train: {uri: s3://data/train.jsonl}}
  evaluation: {gates: {minScore: 0.5}}
---
"""


def compare(folder: Path, older: str, newer: str, *options: str) -> Result:
    """Plan of a change from one text of recipes to another one."""
    (folder / "older.yaml").write_text(older)
    (folder / "newer.yaml").write_text(newer)
    arguments = ["plan", "-f", str(folder / "newer.yaml"), "--from", str(folder / "older.yaml"), "--exit-code"]
    return CliRunner().invoke(app, [*arguments, "--workdir", str(folder / "home"), *options], catch_exceptions=False)


@pytest.mark.parametrize(
    ("edit", "code", "runs"),
    [
        (("", ""), 0, []),
        (("minScore: 0.5", "minScore: 0.6"), 3, ["publish"]),
        (("minScore: 0.5}", "minScore: 0.5}, maxExamples: 9"), 3, ["evaluate", "publish"]),
        (("train.jsonl", "new.jsonl"), 4, ["prepare", "train", "merge", "quantize", "evaluate", "publish"]),
        (
            ("profile: a100", "profile: a100\n  lora: {rank: 8}"),
            4,
            ["train", "merge", "quantize", "evaluate", "publish"],
        ),
        (("metadata: {name: pumps", "metadata: {name: valves"), 4, [stage.value for stage in Stage]),
    ],
)
def test_the_exit_code_and_the_stages_follow_from_the_change(
    tmp_path: Path, edit: tuple[str, str], code: int, runs: list[str]
) -> None:
    """Neither the profile nor the data has to be at hand: both count as unchanged."""
    older = RECIPE.replace("NAME", "pumps")

    done = compare(tmp_path, older, older.replace(*edit) if edit[0] else older)

    assert done.exit_code == code, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line.split()[1:2] == ["run"]] == runs


def test_several_objects_are_planned_with_those_that_are_removed(tmp_path: Path) -> None:
    pumps, valves = RECIPE.replace("NAME", "pumps"), RECIPE.replace("NAME", "valves")

    done = compare(tmp_path, pumps + valves, pumps + RECIPE.replace("NAME", "fans"))

    lines = done.stdout.splitlines()
    assert lines[0] == f"team-a/pumps ({tmp_path}/newer.yaml)"
    assert lines[1].startswith("prepare   keep   done, digest ")
    assert lines[-2:] == [
        "team-a/valves: removed; its artifacts stay in the store",
        "2 objects: 1 with stages that run, 1 with a GPU, 1 removed",
    ]


def finished(**figures: dict[str, float]) -> str:
    """An object as kubectl prints it after its run, with figures of its stages."""
    ran = Scenario(lora_fine_tune().with_spec("training.maxSteps", 100))
    ran.finish_all()
    document = ran.cluster.document
    for row in document["status"]["stages"]:
        row["metrics"] = {**row.get("metrics", {}), **figures.get(row["name"], {})}
    return yaml.safe_dump(document)


TRAINED = finished(
    prepare={"trainExamples": 1000, "trainTokens": 50_000},
    train={"tokensPerSecond": 400.0, "downloadedBytes": 5e9, "uploadedBytes": 1e9},
)


def test_estimates_are_the_figures_of_the_run_before_scaled_to_the_tokens(tmp_path: Path) -> None:
    newer = TRAINED.replace("maxSteps: 100", "maxSteps: 200")
    tokens = 200 * 16 * 50_000 / 1000

    text, found = (compare(tmp_path, TRAINED, newer, *options) for options in ((), ("-o", "json")))

    train = next(line for line in text.stdout.splitlines() if line.startswith("train"))
    assert "run    changed: spec.training.maxSteps" in train
    assert f"(about {tokens / 400:.0f} GPU-seconds, 6.0 GB moved)" in train
    (planned,) = json.loads(found.stdout)["objects"]
    assert (planned["runs"], planned["asksForGpu"], planned["estimatedGpuSeconds"]) == (True, True, tokens / 400)
    (stage,) = (each for each in planned["stages"] if each["stage"] == "train")
    assert (stage["gpus"], stage["estimated"]["movedBytes"]) == (1, 6_000_000_000)


@pytest.mark.parametrize(
    ("ranks", "gpus", "seconds", "gpu_seconds", "cost"),
    [(None, 4, 100, 400, 1.0), (4, 1, 1600, 1600, 4.0), (4, 4, 400, 1600, 4.0), (2, 8, 100, 800, 2.0)],
)
@pytest.mark.parametrize("figure", ["trainTokens", "seconds"])
def test_more_gpus_than_before_shorten_a_training_and_leave_its_gpu_time(
    tmp_path: Path, figure: str, ranks: int | None, gpus: int, seconds: float, gpu_seconds: float, cost: float
) -> None:
    profile = {"store": {"uri": "s3://b/p"}, "maxGpus": 8, "prices": {"currency": "EUR", "gpuHour": 9.0}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    older = yaml.safe_load(TRAINED)
    older["status"].pop("store", None)
    prepared, trained = older["status"]["stages"][:2]
    trained["seconds"] = 400
    trained["metrics"] |= {} if ranks is None else {"worldSize": ranks}
    if figure == "seconds":
        del prepared["metrics"]["trainTokens"], trained["metrics"]["tokensPerSecond"]
    newer = yaml.safe_dump(older).replace("maxSteps: 100", f"maxSteps: 200\n    gpus: {gpus}")

    done = compare(tmp_path, yaml.safe_dump(older), newer, "--profiles", str(tmp_path / "profiles.yaml"), "-o", "json")

    (planned,) = json.loads(done.stdout)["objects"]
    (stage,) = (each for each in planned["stages"] if each["stage"] == "train")
    estimated = stage["estimated"]
    assert (stage["gpus"], estimated["seconds"], estimated["gpuSeconds"]) == (gpus, seconds, gpu_seconds)
    assert estimated["cost"] == {"EUR": cost}


def test_the_gpus_of_all_nodes_are_planned(tmp_path: Path) -> None:
    train = {"limits": {"nvidia.com/gpu": 2}, "nodes": 2}
    profile = {"store": {"uri": "s3://b/p"}, "resources": {"train": train}, "maxNodes": 4}
    profile |= {"prices": {"currency": "EUR", "gpuHour": 9.0}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    older = yaml.safe_load(TRAINED)
    older["status"].pop("store", None)
    older["status"]["stages"][1]["metrics"] |= {"worldSize": 4}
    newer = yaml.safe_dump(older).replace("maxSteps: 100", "maxSteps: 200\n    gpus: 8")

    done = compare(tmp_path, yaml.safe_dump(older), newer, "--profiles", str(tmp_path / "profiles.yaml"), "-o", "json")

    (planned,) = json.loads(done.stdout)["objects"]
    (stage,) = (each for each in planned["stages"] if each["stage"] == "train")
    assert stage["gpus"] == 8
    assert stage["estimated"]["gpuSeconds"] == 8 * stage["estimated"]["seconds"]


def test_all_gpus_of_a_training_whose_memory_is_not_known_are_shown(tmp_path: Path) -> None:
    profile = {"store": {"uri": "s3://b/p"}, "resources": {"train": {"limits": {"nvidia.com/gpu": 2}, "nodes": 2}}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    new = yaml.safe_load(TRAINED)
    new.pop("status")

    done = compare(tmp_path, "", yaml.safe_dump(new), "--profiles", str(tmp_path / "profiles.yaml"), "-o", "markdown")

    (train,) = (line for line in done.stdout.splitlines() if line.startswith("| train "))
    assert train.endswith("| 4 GPUs |")


def test_the_cost_is_at_the_prices_of_the_profile(tmp_path: Path) -> None:
    profile = {"store": {"uri": "s3://b/p"}, "prices": {"currency": "EUR", "gpuHour": 2.0}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    older = yaml.safe_load(TRAINED)
    older["status"].pop("store", None)
    newer = yaml.safe_dump(older).replace("maxSteps: 100", "maxSteps: 9000")

    done = compare(tmp_path, yaml.safe_dump(older), newer, "--profiles", str(tmp_path / "profiles.yaml"))

    assert "18,000 GPU-seconds, 10.00 EUR, 6.0 GB moved" in done.stdout


def test_markdown_shows_texts_of_others_as_they_are(tmp_path: Path) -> None:
    older = RECIPE.replace("NAME", "pumps")
    newer = older.replace("  profile: a100\n", "  profile: a100\n  suspend: true\n").replace(
        "train.jsonl", "|<b>.jsonl"
    )

    done = compare(tmp_path, older, newer, "-o", "markdown")

    assert done.stdout.splitlines()[0] == ("### Edgetune plan: 1 object: 0 with stages that run, 0 with a GPU")
    assert "**Suspended**: spec.suspend is true; set it to false to continue with prepare" in done.stdout
    assert _plain("a|<b>\n@x `y`") == "a\\|&lt;b> \\@x \\`y\\`"


@pytest.mark.parametrize("status", ["3", "[]", "{}", "null"])
@pytest.mark.parametrize("generation", ["null", "two", "7"])
def test_an_older_object_counts_as_finished_whatever_is_in_the_place_of_its_status(
    tmp_path: Path, status: str, generation: str
) -> None:
    newer = RECIPE.replace("NAME", "pumps")
    older = newer.replace("name: pumps,", f"name: pumps, generation: {generation},")

    done = compare(tmp_path, older.replace("---\n", f"status: {status}\n"), newer)

    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "edit",
    [
        ("name: pumps,", "name: pumps, annotations: {edgetune.dev/retry-requested: 'TOKEN'},"),
        ("profile: a100", "profile: a100\n  retry: 'TOKEN'"),
    ],
)
def test_a_retry_that_was_requested_before_the_change_counts_as_done(tmp_path: Path, edit: tuple[str, str]) -> None:
    recipe = RECIPE.replace("NAME", "pumps").replace(*edit)
    first, second = (recipe.replace("TOKEN", token) for token in ("1", "2"))

    assert [compare(tmp_path, first, newer).exit_code for newer in (first, second)] == [0, 3]


def test_an_older_object_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    recipe = RECIPE.replace("NAME", "pumps")

    done = compare(tmp_path, recipe + recipe.replace("minScore: 0.5", "minScore: 0.6"), recipe)

    older = tmp_path / "older.yaml"
    assert done.exit_code == 2
    assert f"team-a/pumps is there twice: {older}:1 and {older}:10; plan what is applied together" in done.stderr


def test_the_message_of_a_publication_names_the_pointer(tmp_path: Path) -> None:
    recipe = RECIPE.replace("NAME", "pumps")

    (planned,) = json.loads(compare(tmp_path, recipe, recipe, "-o", "json").stdout)["objects"]

    assert planned["message"].startswith("latest.json names version ")


def test_an_object_that_would_be_refused_is_no_success(tmp_path: Path) -> None:
    profile = {"store": {"uri": "s3://b/p"}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))
    recipe = RECIPE.replace("NAME", "pumps")

    done = compare(tmp_path, recipe, recipe, "--profiles", str(tmp_path / "profiles.yaml"))

    assert done.exit_code == 1
    assert "Stalled: spec.profile: profile 'a100' not found" in done.stdout


@pytest.mark.parametrize(
    ("newer", "options", "message"),
    [
        (RECIPE + RECIPE, (), "team-a/NAME is there twice: "),
        (RECIPE, ("--live",), "give either --from or --live"),
        (RECIPE.replace("---\n", "  lora: {rank: 0}\n"), (), "newer.yaml:9: spec.lora.rank: "),
        (RECIPE, ("--context", "prod"), "--context and --kubeconfig are for --live: add it"),
        (RECIPE, ("-f", "-", "--from", "-"), "standard input can be read once"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path: Path, newer: str, options: tuple[str, ...], message: str) -> None:
    done = compare(tmp_path, "", newer.replace("name: NAME", "name: pumps"), *options)

    assert done.exit_code == 2
    assert message.replace("NAME", "pumps") in done.stderr
