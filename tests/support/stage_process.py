"""A stage's process with the real runtime and a small body that a test selects.

    python stage_process.py      environment: see edgetune_jobs.runtime.settings, and EDGETUNE_TEST_BEHAVIOUR

Bodies check their inputs and write artifacts whose content depends on these inputs. publish is the real stage.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgetune_contract.pipeline import outputs_of
from edgetune_contract.request import ModelScores, Request, Scores
from edgetune_contract.results.candidates import Candidate, PossibleFormat
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.__main__ import run_process
from edgetune_jobs.errors import Interrupted, OutOfGpuMemory
from edgetune_jobs.runtime import process
from edgetune_jobs.runtime.stage_run import StageBody, StageCode
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.tensors.formats.candidates import Candidates
from edgetune_jobs.training.step_log import METRICS, StepLog, StepMetrics

BEHAVIOUR = "EDGETUNE_TEST_BEHAVIOUR"
OFFLINE = "HF_HUB_OFFLINE"
KILL_AT = "EDGETUNE_TEST_KILL_AT"
LOGGED_STEPS = 9
ARTIFACT_BYTES = "EDGETUNE_TEST_ARTIFACT_BYTES"
INPUTS = {
    Stage.PREPARE: [],
    Stage.TRAIN: ["base", "prepared"],
    Stage.MERGE: ["adapter", "base"],
    Stage.QUANTIZE: ["merged"],
    Stage.EVALUATE: ["adapter", "base", "edge-bnb-int8", "merged", "prepared"],
}
POSSIBLE = (
    PossibleFormat(format=EdgeFormat.BITSANDBYTES_INT8, least_bytes=200),
    PossibleFormat(format=EdgeFormat.GGUF_Q8_0, least_bytes=100),
)
SCORE_OF_CANDIDATES = 0.5
SCORES = Scores(base=0.1, tuned=0.9, merged=0.9, edge=0.89, examples=10)


def work(context: StageContext) -> StageOutput:
    """Write an artifact whose content depends on the inputs."""
    stage = context.request.stage
    in_place = {name: model.fetch(list(model.sizes)) for name, model in context.models.items()}
    inputs = {**context.inputs, **in_place}
    known = [name for name in sorted(inputs) if name != "base-scores"]
    expected = _inputs(context.request)
    if known != expected:
        raise AssertionError(f"{stage} got the inputs {known} instead of {expected}")
    hasher = hashlib.sha256(stage.encode())
    for name, folder in sorted(inputs.items()):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            hasher.update(f"{name}/{path.relative_to(folder)}".encode() + path.read_bytes())
    artifacts = outputs_of(stage, context.request.parameters, context.request.formats)
    for artifact in artifacts:
        (context.output / artifact / "deep").mkdir(parents=True)
        weights = bytes(int(os.environ.get(ARTIFACT_BYTES, "10")))
        (context.output / artifact / "weights.safetensors").write_bytes(weights)
        (context.output / artifact / "deep" / "origin.txt").write_text(hasher.hexdigest())
    if stage is Stage.EVALUATE:
        (context.output / "base-scores").mkdir()
        scores = ModelScores(keyword_recall=0.1).model_dump_json()
        (context.output / "base-scores" / "scores.json").write_text(scores)
        (context.output / "base-scores" / "answers.jsonl").write_text('{"row": 0, "answer": "a"}\n')
    return StageOutput(
        artifacts=artifacts,
        metrics={"rows": 3},
        facts={"inputs": " ".join(sorted(inputs)), **_known_answers(inputs), **_facts(context.request)},
        warnings=["few rows"],
        scores=SCORES if stage is Stage.EVALUATE else None,
        possible=_possible(context.request) if stage is Stage.PREPARE else (),
        candidates=_candidates(context.request) if stage is Stage.EVALUATE else (),
    )


def _inputs(request: Request) -> list[str]:
    if request.stage is not Stage.EVALUATE or not request.parameters.quantization.is_auto:
        return INPUTS[request.stage]
    others = set(INPUTS[Stage.EVALUATE]) - {"edge-bnb-int8"}
    return sorted(others | {each.artifact for each in request.formats})


def _possible(request: Request) -> tuple[PossibleFormat, ...]:
    return POSSIBLE if request.parameters.quantization.is_auto else ()


def _facts(request: Request) -> Mapping[str, str]:
    return Candidates(_possible(request)).facts if request.stage is Stage.PREPARE else {}


def _candidates(request: Request) -> tuple[Candidate, ...]:
    """The candidates of formats Auto; the smallest one that was written is chosen unless a gate needs a high score."""
    if not request.parameters.quantization.is_auto:
        return ()
    *others, smallest = request.formats
    is_refused = (request.parameters.evaluation.gates.min_score or 0) > SCORE_OF_CANDIDATES
    figures = {"bytes": 100, "score": SCORE_OF_CANDIDATES, "loss": 1.0}
    limits = ("minScore",) if is_refused else ()
    return (
        *(Candidate(format=each, limits=limits or ("maxEdgeBytes",), **figures) for each in others),
        Candidate(format=smallest, limits=limits, chosen=not is_refused, **figures),
    )


def _known_answers(inputs: Mapping[str, Path]) -> dict[str, str]:
    path = inputs.get("base-scores", Path()) / "answers.jsonl"
    return {"baseAnswers": path.read_text().strip()} if path.is_file() else {}


def recheck(context: StageContext, known: Mapping[str, float]) -> StageOutput:
    """Read the base, and return a metric that depends on a field outside of prepare's digest."""
    (context.sources["base"].fetch(["config.json"]) / "config.json").read_bytes()
    weights = known["rows"] * context.request.parameters.lora.rank
    return StageOutput(metrics={"weights": weights}, facts=_facts(context.request), possible=_possible(context.request))


def hang(context: StageContext) -> StageOutput:
    """Report "hanging", and wait until the process ends."""
    context.progress.say("hanging")
    while True:
        time.sleep(0.05)


def hang_and_clean_up(context: StageContext) -> StageOutput:
    """Hang, and take half a second to clean up at the end."""
    try:
        return hang(context)
    finally:
        context.progress.say("cleaning up")
        time.sleep(0.5)
        context.progress.say("cleaned up")


def train_until_stopped(context: StageContext) -> StageOutput:
    """Save a checkpoint after each step; end as train does when it is stopped."""
    checkpoints = context.checkpoints
    if checkpoints is None:
        raise AssertionError("train got no checkpoints")
    resumed = checkpoints.restore_latest(context.scratch / "resume") or 0
    for step in range(resumed + 1, resumed + 1000):
        folder = context.scratch / f"step-{step}"
        folder.mkdir()
        (folder / "state.txt").write_text(str(step))
        checkpoints.save(step, folder)
        context.progress.update(step, 1000, "steps", loss=1.0 / step)
        if context.stop.wait(0.05):
            raise Interrupted(f"stopped after step {step}", step)
    raise AssertionError("the training was not stopped")


def train_with_log(context: StageContext) -> StageOutput:
    """Train LOGGED_STEPS steps with a checkpoint after each second one, and metrics.jsonl in the adapter.

    After the step that EDGETUNE_TEST_KILL_AT names, it waits to be killed.
    """
    checkpoints = context.checkpoints
    if checkpoints is None:
        raise AssertionError("train got no checkpoints")
    log, resumed = StepLog(context.scratch / METRICS), context.scratch / "resume"
    done = checkpoints.restore_latest(resumed) or 0
    if done:
        log.restore_from(resumed)
    context.progress.say("training")
    for step in range(done + 1, LOGGED_STEPS + 1):
        rate, norm = 1e-3 / step, 0.5 + step
        figures = {"learningRate": rate, "gradientNorm": norm, "tokensPerSecond": 100.0}
        context.progress.update(step, LOGGED_STEPS, "steps", loss=1 / step, **figures)
        validation = 2 / step if step % 2 == 0 else None
        log.add(StepMetrics(step, step / 10, 1 / step, rate, norm, 100.0, validation))
        if step % 2 == 0:
            folder = context.scratch / f"step-{step}"
            folder.mkdir()
            log.save_to(folder)
            checkpoints.save(step, folder)
        if str(step) == os.environ.get(KILL_AT):
            context.progress.say("waiting to be killed")
            time.sleep(60)
    output = work(context)
    log.save_to(context.output / "adapter")
    return output


def swallow_the_signal(context: StageContext) -> StageOutput:
    """Finish the work despite a signal."""
    context.progress.say("hanging")
    context.stop.wait(30)
    return work(context)


def fail(error: Callable[[], BaseException]) -> StageBody:
    """A body that raises an error."""

    def body(_: StageContext) -> StageOutput:
        raise error()

    return body


class OutOfMemoryError(RuntimeError):
    """Has the name and the module of torch's error, so that torch need not be imported."""


OutOfMemoryError.__module__ = "torch"


def too_long(context: StageContext) -> StageOutput:
    """Return more metrics than fit into a termination message."""
    return replace(work(context), metrics={f"figure{number}": float(number) for number in range(400)})


def other_artifacts(context: StageContext) -> StageOutput:
    """Return an artifact that is not in the pipeline's table."""
    return replace(work(context), artifacts=("weights",))


def reports_offline(context: StageContext) -> StageOutput:
    """Return the process's HF_HUB_OFFLINE as a fact."""
    output = StageOutput() if context.request.stage is Stage.PUBLISH else work(context)
    return replace(output, facts={OFFLINE: os.environ[OFFLINE]})


def prints(context: StageContext) -> StageOutput:
    """Write to stdout as libraries do."""
    print("a library's banner")
    os.system("echo a child of a library")  # noqa: S605
    return work(context)


BEHAVIOURS: dict[str, StageBody] = {
    "work": work,
    "hang": hang,
    "hang_and_clean_up": hang_and_clean_up,
    "train_until_stopped": train_until_stopped,
    "train_with_log": train_with_log,
    "swallow_the_signal": swallow_the_signal,
    "too_long": too_long,
    "other_artifacts": other_artifacts,
    "prints": prints,
    "reports_offline": reports_offline,
    "bug": fail(lambda: KeyError("no such 'layer' \x07 in \"the\" model")),
    "memory": fail(lambda: MemoryError()),
    "disk": fail(lambda: OSError(errno.ENOSPC, "No space left on device", str(Path.cwd()))),
    "disk_in_a_library": fail(lambda: RuntimeError('IoError: Os { code: 28, message: "No space left on device" }')),
    "gpu_memory": fail(lambda: OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "gpu_memory_of_the_stage": fail(lambda: OutOfGpuMemory("it does not fit")),
}


def load_code(stage: Stage) -> StageCode:
    """The body that the environment names; publish is the real stage, except for reports_offline."""
    behaviour = os.environ.get(BEHAVIOUR, "work")
    if stage is Stage.PUBLISH and behaviour != "reports_offline":
        return process.load_stage_code(stage)
    return StageCode(BEHAVIOURS[behaviour], recheck if stage is Stage.PREPARE else None)


if __name__ == "__main__":
    run_process(load_code)
