"""What QLoRA and INT8 quantize, also subclasses of linear layers and experts, as a loaded model shows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.spec import Method
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization import coverage
from edgetune_jobs.models.quantization.coverage import Coverage
from edgetune_jobs.models.skeleton import build_skeleton
from support.edge_models import make_kind

CPU = torch.device("cpu")
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "falcon": {},
    "mixtral": MIXTURE,
    "gpt_oss": {**MIXTURE, "head_dim": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param
    return make_kind(tmp_path_factory.mktemp(kind) / "base", kind, **KINDS[kind])


def test_qlora_holds_subclasses_and_experts_in_nf4(base: Path) -> None:
    expected = coverage.nf4_coverage(build_skeleton(base))

    held = coverage.held_in_nf4(loading.load_quantized_base(base, torch.bfloat16, CPU))

    assert (held.quantized, held.total) == (expected.quantized, expected.total)
    assert held.share > 0.6
    assert expected.left == ()


def test_the_base_of_the_merge_has_the_values_of_training(base: Path) -> None:
    tokens = torch.arange(3, 30).unsqueeze(0)
    trained = loading.load_quantized_base(base, torch.bfloat16, CPU).train()
    merged = loading.load_base(base, torch.bfloat16, CPU)

    loading.round_to_nf4(merged)

    assert torch.allclose(trained(tokens).logits, merged.train()(tokens).logits, atol=0.05)


def test_gradients_pass_through_packed_weights(base: Path) -> None:
    model = loading.load_quantized_base(base, torch.float32, CPU).train()
    embedding = model.get_input_embeddings().weight.requires_grad_()

    model(torch.arange(3, 30).unsqueeze(0), labels=torch.arange(3, 30).unsqueeze(0)).loss.backward()

    assert embedding.grad is not None
    assert embedding.grad[3:30].abs().sum() > 0


@pytest.mark.parametrize(("kind", "share"), [("falcon", 0.0), ("mixtral", 0.1)])
def test_bitsandbytes_int8_leaves_what_from_pretrained_cannot_read(tmp_path: Path, kind: str, share: float) -> None:
    found = coverage.int8_coverage(build_skeleton(make_kind(tmp_path, kind, **KINDS[kind])))

    assert found.share == pytest.approx(share, abs=0.05)
    assert len(found.left) == 1


def test_a_subclass_that_computes_something_else_is_no_linear_layer() -> None:
    class Doubling(torch.nn.Linear):  # type: ignore[misc]
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in torch
            return 2 * super().forward(input)

    class Router(torch.nn.Linear):  # type: ignore[misc]
        def __init__(self, config: object) -> None:
            super().__init__(config.hidden_size, 4)  # type: ignore[attr-defined]

    assert not coverage.is_linear(Doubling)
    assert not coverage.is_linear(Router)


def test_qlora_that_quantizes_nothing_is_refused_and_a_part_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.method: QLoRA quantizes no weight of Odd.*use method: LoRA"):
        coverage.check_method(Coverage(0, 10), Method.QLORA, "Odd")

    (warning,) = coverage.check_method(Coverage(4, 10, left=("Mixer",)), Method.QLORA, "Odd")

    assert warning == "QLoRA holds only 40% of the base's weights in NF4: Mixer stay in 16 or 32 bits"
    assert coverage.check_method(Coverage(0, 10), Method.LORA, "Odd") == ()
