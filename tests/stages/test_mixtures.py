"""Mixtures of experts are trained, and merged into a model that computes the same as base and adapter."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgetune_contract.spec import MergeBase
from edgetune_contract.stages import Stage
from edgetune_jobs.models.tuned_model import load_tuned
from edgetune_jobs.stages import merge
from support.edge_models import make_kind
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters, train

pytestmark = [pytest.mark.usefixtures("two_threads"), pytest.mark.slow]

CPU = torch.device("cpu")
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1, "topk_group": 1}
TYPES: Mapping[str, Mapping[str, int]] = {
    # Its configuration names the number of experts otherwise than trl, which computes the routers' loss.
    "granitemoe": LOCAL,
    # Its router is a subclass of nn.Linear that returns a tuple.
    "phimoe": LOCAL,
    # Its shared experts have the names that peft takes for those of the others.
    "glm4_moe": {**ROUTED, "first_k_dense_replace": 1, "head_dim": 16},
}


def test_only_the_auxiliary_loss_depends_on_the_examples_of_a_forward_pass(tmp_path: Path, few_rows: Path) -> None:
    """The routers' auxiliary loss balances the load of each forward pass."""

    def first_loss(coefficient: float, size: int) -> float:
        fields = {**LOCAL, "router_aux_loss_coef": coefficient, "output_router_logits": True}
        name = f"{coefficient}-{size}"
        base = make_kind(tmp_path / f"base-{name}", "granitemoe", vocab_size=1024, **fields)
        training = {"maxSteps": 1, "microBatchSize": size}
        result = train(tmp_path / name, tiny_parameters(method="LoRA", training=training), base, few_rows)
        return result.figures("loss")[0]

    assert first_loss(0.0, 1) == pytest.approx(first_loss(0.0, 4), rel=2e-5)
    assert first_loss(1.0, 1) != pytest.approx(first_loss(1.0, 4), rel=2e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_mixture_is_trained_with_all_linear_and_merged(model_type: str, tmp_path: Path, few_rows: Path) -> None:
    base = make_kind(tmp_path / "base", model_type, vocab_size=1024, **TYPES[model_type])
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(base)
    parameters = tiny_parameters(training={"maxSteps": 2, "warmupRatio": 0})

    adapter = train(tmp_path / "run", parameters, base, few_rows).adapter
    context = stage_context(Stage.MERGE, parameters, tmp_path / "merge", {"base": base, "adapter": adapter})
    merge.run(context)

    merged = AutoModelForCausalLM.from_pretrained(context.output / "merged").eval()
    tuned = load_tuned(base, adapter, MergeBase.AS_TRAINED, CPU)
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.inference_mode():
        expected = tuned(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-3)
        with tuned.disable_adapter():
            assert not torch.allclose(tuned(input_ids=ids).logits, expected, atol=1e-2), "the adapter changes answers"
