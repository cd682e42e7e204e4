"""On CPUs with AVX512-BF16, bitsandbytes repacks NF4 weights in the first eval pass, and gradients stop flowing.

`load_quantized_base` switches the repacking off; without that the second test fails on such CPUs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_jobs.models import loading
from edgetune_jobs.stages import train as stage
from support.tiny_runs import new_run, tiny_parameters


def test_no_layer_of_a_quantized_base_may_repack_itself(random_base: Path) -> None:
    import bitsandbytes

    model = loading.load_quantized_base(random_base, torch.bfloat16, torch.device("cpu"))

    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14, "seven linear layers in each of two blocks"
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16", False),
    reason="this CPU has no AVX512-BF16: bitsandbytes does not repack here, so the trap cannot close",
)
def test_a_pass_in_eval_mode_before_training_changes_no_loss(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = tiny_parameters(training={"precision": "BF16", "maxSteps": 5})
    plain = new_run(tmp_path / "plain", parameters, random_base, few_rows)
    stage.run(plain.context)
    load = loading.load_quantized_base

    def load_and_answer(*args: Any) -> Any:
        model = load(*args)
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        return model

    monkeypatch.setattr(loading, "load_quantized_base", load_and_answer)
    asked_first = new_run(tmp_path / "asked-first", parameters, random_base, few_rows)
    stage.run(asked_first.context)

    assert asked_first.figures("loss") == plain.figures("loss")
