"""The ranks of a training as processes: each way in which one can fail ends all of them, with one error."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import (
    AccessDenied,
    Interrupted,
    OutOfGpuMemory,
    PeerLost,
    ReportedBug,
    TrainingDiverged,
    TransientError,
)
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.supervisor import Patience, StoreOfRanks, train_in_ranks
from edgetune_jobs.stage import StageContext, StageOutput
from support import rank_faults
from support.stage_context import RecordedProgress, stage_context
from support.tiny_runs import tiny_parameters

WITHOUT_HANDLERS = ("sleep", "60")
COMMAND = (sys.executable, str(Path(rank_faults.__file__)))
PATIENCE = Patience(for_answers=60, for_end=2)
RESUMES = "the next attempt resumes from the newest checkpoint"


@pytest.fixture
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture
def context(tmp_path: Path, progress: RecordedProgress) -> StageContext:
    return stage_context(Stage.TRAIN, tiny_parameters(), tmp_path, {}, progress=progress)


def run(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    fault: str = "",
    *,
    ranks: int = 2,
    wait: float = 60,
    command: Sequence[str] = COMMAND,
) -> StageOutput:
    monkeypatch.setenv(rank_faults.FAULT, fault)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # one for each
    patience = Patience(for_answers=wait, for_end=PATIENCE.for_end)
    try:
        return train_in_ranks(context, RankPlan(ranks), StoreOfRanks("a" * 64), command, patience)
    finally:
        assert not children(), "no process is left"


def children() -> list[int]:
    """Processes of this one that are still there."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [pid for pid in map(int, listed.split()) if "rank_faults" in command_line(pid)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def test_the_output_and_the_progress_are_those_of_rank_0(
    context: StageContext, progress: RecordedProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(context, monkeypatch)

    metrics = dict(output.metrics)
    assert metrics.pop("usedMemoryBytes") > 2 * 100e6, "that of both, each with torch"
    facts = {"ranks": "2 on this CPU, gradients by Gloo"}
    assert replace(output, metrics=metrics) == StageOutput(("adapter",), {"steps": 6.0}, facts, ("a warning",))
    assert progress.updates == [{"done": step, "total": 6, "unit": "steps", "loss": 1.0 / step} for step in range(1, 7)]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            "1 kill",
            TransientError,
            "rank 1 of 2 was killed (SIGKILL), probably because the container ran out of memory: raise the memory of "
            f"the stage train in the profile if it happens again; {RESUMES}",
        ),
        ("0 segfault", TransientError, f"rank 0 of 2 was ended by SIGSEGV; {RESUMES}"),
        (
            "1 exit",
            TransientError,
            f"rank 1 of 2 ended with exit code 1 and no report; its log says why; {RESUMES}",
        ),
        ("1 memory", OutOfGpuMemory, "rank 1 of 2: it does not fit"),
        ("0 diverge", TrainingDiverged, "the loss is nan at step 3"),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_error(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        run(context, monkeypatch, fault)

    assert (type(raised.value), str(raised.value)) == (error, message)


def test_a_bug_in_a_rank_is_reported_with_its_traceback(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReportedBug, match=r"^rank 1 of 2: this is a bug in Edgetune(?s:.*)KeyError: 'no such layer'$"):
        run(context, monkeypatch, "1 bug")


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_rank_that_hangs_is_named_and_killed(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    with pytest.raises(PeerLost) as raised:
        run(context, monkeypatch, f"{hanging} hang", wait=3)

    who = "rank 1" if hanging == 1 else "another rank"
    assert str(raised.value) == (f"{who} of 2 did not answer within 3 s; rank {hanging} had to be killed: {RESUMES}")


def test_a_signal_stops_all_ranks_after_the_same_step(
    context: StageContext, progress: RecordedProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.on_update = lambda done: context.stop.set() if done == 2 else None

    with pytest.raises(Interrupted, match=r"^stopped after step \d+$") as raised:
        run(context, monkeypatch, "0 wait")

    assert (raised.value.step or 0) >= 2


def test_a_signal_while_ranks_start_is_an_interruption(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context.stop.set()

    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM before the first step of this attempt$") as raised:
        run(context, monkeypatch, command=WITHOUT_HANDLERS)

    assert raised.value.step is None


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("0 denied save", AccessDenied, "rank 0 of 2: the store denies access to checkpoints/"),
        ("0 killed save", TransientError, r"rank 0 of 2 was killed \(SIGKILL\)"),
    ],
)
def test_a_stop_is_the_failure_of_rank_0_if_that_does_not_save_the_checkpoint(
    context: StageContext,
    progress: RecordedProgress,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    error: type[Exception],
    message: str,
) -> None:
    progress.on_update = lambda done: context.stop.set() if done == 2 else None

    with pytest.raises(error, match=f"^{message}"):
        run(context, monkeypatch, fault)


def test_ranks_end_when_the_stage_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from support import rank_faults\n"
        "from support.stage_context import RecordedProgress, stage_context\n"
        "from support.tiny_runs import tiny_parameters\n"
        "from edgetune_contract.stages import Stage\n"
        "from edgetune_jobs.runtime.ranks.plan import RankPlan\n"
        "from edgetune_jobs.runtime.ranks.supervisor import StoreOfRanks, train_in_ranks\n"
        "progress = RecordedProgress(on_update=lambda done: print(done, flush=True))\n"
        f"context = stage_context(Stage.TRAIN, tiny_parameters(), Path({str(tmp_path)!r}), {{}}, progress=progress)\n"
        "train_in_ranks(context, RankPlan(2), StoreOfRanks('a' * 64), (sys.executable, rank_faults.__file__))\n"
    )
    environment = {**os.environ, rank_faults.FAULT: "0 wait", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        stage.stdout.readline()
        listed = Path(f"/proc/{stage.pid}/task/{stage.pid}/children").read_text(encoding="ascii")
        ranks = [pid for pid in map(int, listed.split()) if "rank_faults" in command_line(pid)]
        os.kill(stage.pid, signal.SIGKILL)

    assert len(ranks) == 2
    deadline = time.monotonic() + 20
    while any("rank_faults" in command_line(pid) for pid in ranks):
        assert time.monotonic() < deadline, f"ranks are still there: {json.dumps(ranks)}"
        time.sleep(0.05)
