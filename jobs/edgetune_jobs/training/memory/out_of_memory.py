"""What a training that ran out of GPU memory, and cannot continue in this process, reports and leaves."""

from edgetune_contract.spec import Method, Parameters
from edgetune_contract.training import GradientCheckpointing
from edgetune_jobs.errors import InvalidInput, OutOfGpuMemory, StageError
from edgetune_jobs.stage import Checkpoints
from edgetune_jobs.training.memory.step_fit import StepFit
from edgetune_jobs.wording import count


def out_of_memory(
    parameters: Parameters, fit: StepFit | None, checkpoints: Checkpoints | None, *, fitted: bool
) -> StageError:
    """The error of the attempt; writes the next attempt's step size if a smaller one exists.

    Args:
        parameters: of the run.
        fit: the fit of a step; None if the base was still being loaded.
        checkpoints: of the training.
        fitted: whether this attempt has finished a step.
    """
    spec = parameters.training
    if fit is None:
        advice = "use method: QLoRA, a smaller base model, or a profile with a larger GPU"
        return InvalidInput(f"the GPU ran out of memory while the base model was loaded: {advice}")
    smaller, examples = fit.smaller, count(fit.choice.micro_batch_size, "example")
    where = f"the GPU ran out of memory with a micro-batch of {examples} of up to {spec.max_length} tokens"
    if fitted and smaller is None:
        return OutOfGpuMemory(
            f"{where}, although earlier steps fitted: the next attempt resumes from the newest checkpoint; if it "
            "happens again, lower spec.training.maxLength, or use a GPU that is not shared"
        )
    if smaller is None or checkpoints is None:
        ways = ["lower spec.training.maxLength or spec.lora.rank"]
        if spec.gradient_checkpointing is GradientCheckpointing.NEVER:
            ways.append("set spec.training.gradientCheckpointing: Auto")
        if parameters.method is Method.LORA:
            ways.append("use method: QLoRA")
        return InvalidInput(
            f"{where}, and there is no smaller one: {', '.join(ways)}, or use a profile with a larger GPU"
        )
    checkpoints.write_step_size(smaller.size)
    return OutOfGpuMemory(f"{where}: the next attempt uses {smaller.size}")
