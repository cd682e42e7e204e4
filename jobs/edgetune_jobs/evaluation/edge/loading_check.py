"""Loads each edge model in the runtime it is for, and asks it one prompt, before anything is published."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.edge.child_process import CannotRun, CannotStart, OutOfMemory
from edgetune_jobs.evaluation.edge.measuring import measure
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, RUNTIMES, Runtime, missing_runtime
from edgetune_jobs.models.libraries import usable_cpus
from edgetune_jobs.stage import StageContext

_NEW_TOKENS = 2
_MOST_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Loaded:
    """Which runtime loaded each edge model."""

    facts: str
    """For each artifact the runtime with its version, or "not loaded by its runtime"."""

    warnings: tuple[str, ...]
    in_llama_cpp: frozenset[str] = frozenset()
    """Artifacts that llama.cpp has loaded and asked here."""


def check_loading(context: StageContext, prompt: Sequence[int]) -> Loaded:
    """Load edge models in their runtimes; those for transformers are loaded and asked when they are scored.

    Args:
        context: the context of evaluate, with the edge models among its inputs.
        prompt: token ids, of which the first ones are used.

    Raises:
        InvalidInput: a runtime does not load or run its edge model.
        TransientError: the runtime's process was killed from outside.
        Interrupted: `context.stop` was set.
    """
    facts, warnings, in_llama_cpp = [], [], set()
    is_measured = context.request.parameters.evaluation.edge is not None
    for edge_format in context.request.parameters.quantization.formats:
        name, problem = edge_format.artifact, missing_runtime(edge_format)
        runtime = RUNTIMES.get(edge_format)
        if problem is not None:
            also = ", and its speed not measured" if is_measured else ""
            warnings.append(f"{name} was not loaded by its runtime{also}: {problem}")
        elif runtime is not Runtime.TRANSFORMERS:
            with required_to_run(context, name):
                problem = try_loading(context, edge_format, prompt)
            if problem is not None:
                warnings.append(f"{name} was not loaded by its runtime: {problem}")
        facts.append(f"{name} by {runtime}" if problem is None else f"{name} not loaded by its runtime")
        if problem is None and runtime is Runtime.LLAMA_CPP:
            in_llama_cpp.add(name)
    return Loaded(", ".join(facts), tuple(warnings), frozenset(in_llama_cpp))


def try_loading(context: StageContext, edge_format: EdgeFormat, prompt: Sequence[int]) -> str | None:
    """Load and ask one model; why this machine cannot, None if it can.

    Raises:
        CannotRun: the runtime does not load or run the model.
    """
    name, runtime = edge_format.artifact, RUNTIMES[edge_format]
    context.progress.say(f"loading {name} in {runtime}")
    first_tokens = tuple(prompt[:_MOST_PROMPT_TOKENS])
    request = MeasurementRequest(
        runtime, context.inputs[name], AS_STORED, first_tokens, _NEW_TOKENS, usable_cpus(), os.getpid(), is_timed=False
    )
    try:
        measure(request, context.scratch, context.stop, memory=None)
    except OutOfMemory as error:
        return f"the machine has too little memory: {error}"
    except CannotStart as error:
        return f"{runtime} does not start here: {error}"
    return None


@contextmanager
def required_to_run(context: StageContext, artifact: str) -> Iterator[None]:
    """Convert an error of the runtime of a listed format into one about the spec or the machine."""
    listed = context.request.parameters.quantization.formats
    place, edge_format = next((at, each) for at, each in enumerate(listed) if each.artifact == artifact)
    # Formats without a runtime here are scored in transformers.
    runtime = RUNTIMES.get(edge_format, Runtime.TRANSFORMERS)
    try:
        yield
    except CannotRun as error:
        raise InvalidInput(
            f"spec.quantization.formats[{place}]: {runtime} does not run {artifact}, so it is not published: "
            f"{' '.join(str(error).split())}; remove {edge_format}, or use another base model"
        ) from error
    except OutOfMemory as error:
        raise InvalidInput(
            f"the machine has too little memory to score {artifact} in {runtime}: {error}; give the stage evaluate "
            "more memory in the profile"
        ) from error
