"""On CPUs with AVX512-BF16, bitsandbytes repacks NF4 weights in the first eval pass, which stops gradients.

`load_quantized_base` disables the repacking; otherwise the second test fails on such CPUs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_jobs.models import loading
from edgetune_jobs.stages import train as stage
from support.tiny_runs import new_run, tiny_parameters


def test_repacking_is_disabled_in_all_layers_of_a_quantized_base(random_base: Path) -> None:
    import bitsandbytes

    model = loading.load_quantized_base(random_base, torch.bfloat16, torch.device("cpu"))

    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14, "seven linear layers in each of two blocks"
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16", False),
    reason="this CPU has no AVX512-BF16: bitsandbytes does not repack weights on it",
)
def test_a_forward_pass_in_eval_mode_before_training_does_not_change_the_loss(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = tiny_parameters(training={"precision": "BF16", "maxSteps": 5})
    plain = new_run(tmp_path / "plain", parameters, random_base, few_rows)
    stage.run(plain.context)
    load = loading.load_quantized_base

    def load_and_run(*args: Any) -> Any:
        model = load(*args)
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        return model

    monkeypatch.setattr(loading, "load_quantized_base", load_and_run)
    after_eval = new_run(tmp_path / "after-eval", parameters, random_base, few_rows)
    stage.run(after_eval.context)

    assert after_eval.figures("loss") == plain.figures("loss")
