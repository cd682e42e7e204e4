"""train as a process with two ranks: its termination message, its exit codes, and no process that is left."""

import signal
import subprocess
from pathlib import Path

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.prepared_runs import prepared_runs
from support.stage_runs import StageRuns, wait_until

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture
def runs(tmp_path: Path, random_base: Path, few_rows: Path) -> StageRuns:
    """A run whose prepare is done."""
    training = {"maxSteps": STEPS, "microBatchSize": 2}
    runs = prepared_runs(tmp_path, random_base, few_rows, training)
    runs.environment["EDGETUNE_RANKS"] = "2"
    return runs


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in listed.split()]


def test_two_ranks_finish_the_stage(runs: StageRuns) -> None:
    stage = runs.start(Stage.TRAIN)
    stage.wait_for(f'"done": {STEPS}')

    finished = stage.wait()

    assert finished.exit_code == ExitCode.DONE, finished.stderr
    assert finished.result.metrics["worldSize"] == 2
    assert finished.result.facts["ranks"].startswith("2 on this CPU, gradients by Gloo; the most memory is")
    assert [artifact.name for artifact in finished.result.artifacts] == ["adapter"]
    assert runs.leftovers() == []


def test_ranks_on_cpus_need_no_shared_memory(runs: StageRuns) -> None:
    """A container has 64 MiB at /dev/shm by default; here, other files fill them."""
    in_namespace = ("unshare", "--mount", "sh", "-c")
    fill = "mount -t tmpfs -o size=64m tmpfs /dev/shm && ! head -c 65m /dev/zero >/dev/shm/full 2>/dev/null"
    if subprocess.run([*in_namespace, fill], check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs in a namespace of its own needs root")
    runs.command = (*in_namespace, f'{fill}; exec "$@"', "sh", *runs.command)

    finished = runs.start(Stage.TRAIN).wait(540)

    assert finished.exit_code == ExitCode.DONE, finished.stderr
    assert finished.result.metrics["worldSize"] == 2


def test_sigterm_stops_both_ranks_after_the_same_step_with_one_checkpoint(runs: StageRuns) -> None:
    training = runs.parameters.training.model_copy(update={"max_steps": 100_000})
    runs.parameters = runs.parameters.model_copy(update={"training": training})
    stage = runs.start(Stage.TRAIN)
    stage.wait_for('"done": 2')
    ranks = _children(stage.process.pid)
    stage.process.send_signal(signal.SIGTERM)

    stopped = stage.wait()

    assert stopped.exit_code == ExitCode.INTERRUPTED, stopped.stderr
    assert stopped.result.failure is not None
    step = stopped.result.failure.step
    assert stopped.failure.startswith(f"stopped by SIGTERM after step {step} of 100000; its checkpoint is in the store")
    checkpoints = {found.key.split("/")[2] for found in LocalFolderStore(runs.store.uri).list("checkpoints")}
    assert checkpoints == {f"step-{step}"}
    assert len(ranks) == 2
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), "all ranks have ended")
    assert runs.leftovers() == []
