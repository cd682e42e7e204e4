"""The steps of a GPU check in their order: the most important first, and a step after those whose figures it needs."""

from collections.abc import Sequence

from bench.gpu_check import edge, kernels, machine, ranks, recovery, training
from bench.gpu_check.runner import Step
from edgetune_contract.spec import Method


def all_steps() -> Sequence[Step]:
    """All steps."""
    return (
        Step("environment", 20, machine.environment),
        Step("without a C compiler", 30, machine.without_compiler),
        Step("weights", 90, kernels.write_weights),
        Step("NF4 loading", 60, kernels.nf4_loading),
        Step("NF4 codes", 40, kernels.nf4_codes),
        Step("varlen attention", 40, kernels.varlen),
        *training.throughput_steps(Method.QLORA),
        *training.layout_steps(),
        *training.throughput_steps(Method.LORA),
        Step("prepare's estimate", 30, training.prepare_estimate),
        Step("optimizers", 30, kernels.optimizer_steps),
        Step("out-of-memory healing", 60, recovery.healing),
        Step("SIGTERM and resume", 120, recovery.resuming),
        Step("two ranks on one device", 240, ranks.two_ranks),
        Step("edge formats", 60, edge.evaluation),
        *training.lever_steps(Method.QLORA),
        *training.lever_steps(Method.LORA),
    )
