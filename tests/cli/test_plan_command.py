"""`edgetune plan` for an object of this machine; its decisions are tested in operator/decisions."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from support.builders import lora_fine_tune

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


def test_a_gate_on_the_score_leaves_nothing_to_warn_about(tmp_path: Path) -> None:
    assert "Warning" not in plan(tmp_path, gates={"minScore": 0.8}).stdout


def test_an_outcome_other_than_a_publication_is_printed_last(tmp_path: Path) -> None:
    suspended, unknown = plan(tmp_path, suspend=True), plan(tmp_path, profile="a100")

    assert suspended.stdout.splitlines()[-1] == (
        "Suspended: spec.suspend is true; set it to false to continue with prepare"
    )
    assert unknown.stdout.splitlines()[-1] == (
        "Stalled: spec.profile: profile 'a100' not found; ask the platform team for the names of the profiles"
    )


def test_a_work_folder_that_is_a_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")

    done = plan(tmp_path)

    assert (done.exit_code, "Not a directory" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
