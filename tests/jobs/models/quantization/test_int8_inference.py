"""The fast forward pass of LLM.int8 is bitwise that of bitsandbytes."""

from typing import Any

import bitsandbytes
import pytest
import torch

from edgetune_jobs.models.quantization import int8_inference


def _layer(*, bias: bool = False, threshold: float = 6.0) -> Any:
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(96, 160, bias=bias, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict({name: torch.randn(value.shape) for name, value in layer.state_dict().items()})
    return layer.to("cpu").eval()


def _rows(*shape: int, outlier: float | None = None) -> torch.Tensor:
    rows = torch.randn(*shape, 96, generator=torch.Generator().manual_seed(1))
    rows.flatten(0, -2)[0, 3::32] = 0 if outlier is None else outlier
    return rows


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({}, _rows(2, 7), id="no outlier"),
        pytest.param({}, _rows(2, 7, outlier=-9.7), id="outliers"),
        pytest.param({}, _rows(1, outlier=11.3), id="an outlier in a single row"),
        pytest.param({"bias": True}, _rows(5, outlier=6.0), id="bias, and an outlier at the threshold"),
        pytest.param({"threshold": 0.0, "bias": True}, _rows(5, outlier=50.0), id="no threshold"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bitwise_those_of_bitsandbytes(
    options: dict[str, Any], rows: torch.Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_inference, "_PART", 480)  # three rows of outputs
    layer = _layer(**options)
    with torch.inference_mode():
        expected = layer(rows.to(dtype))
        int8_inference.replace_forward(layer)
        found = layer(rows.to(dtype))

    assert found.dtype == dtype
    assert torch.equal(found, expected)
