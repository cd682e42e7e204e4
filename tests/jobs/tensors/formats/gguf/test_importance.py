"""The importance matrix is the mean square of each input, with the weights read from the file one by one."""

import threading
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.models import loading
from edgetune_jobs.tensors.formats.gguf.importance import choose_rows, importance_matrix
from edgetune_jobs.tensors.formats.gguf.layout import GgufLayout, lay_out, matrices_of
from support.edge_models import make_model, stored_weights, write_gguf
from support.stage_context import RecordedProgress

pytestmark = pytest.mark.slow

ROWS = [[5, 6, 7], list(range(4, 44)), [9] * 11, list(range(60, 20, -1))]


def written(folder: Path, family: str) -> tuple[Path, GgufLayout, Path, int]:
    """A model, the layout of its GGUF file, the file, and where the first tensor begins."""
    model = make_model(folder / "model", family, dtype="bfloat16")
    file = write_gguf(model, folder / "edge", EdgeFormat.GGUF_BF16)
    shapes = {tensor.name: tensor.shape for tensor in stored_weights(model).tensors}
    layout = lay_out(AutoConfig.from_pretrained(model), shapes, *matrices_of(EdgeFormat.GGUF_BF16, "bfloat16"))
    return model, layout, file, min(tensor.data_offset for tensor in gguf.GGUFReader(file).tensors)


@pytest.mark.parametrize("family", ["llama biases", "llama llama3-rope", "phi3 longrope", "gemma2", "qwen3"])
def test_the_matrix_has_the_mean_squares_of_the_inputs_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    model, layout, file, start = written(tmp_path, family)
    progress = RecordedProgress()

    found = importance_matrix(layout, file, start, model, ROWS, progress, threading.Event())

    loaded = loading.load_base(model, torch.bfloat16, torch.device("cpu"))
    expected: dict[str, torch.Tensor] = {}
    for name, module in loaded.named_modules():
        tensor = layout.tensors.get(f"{name}.weight")
        if isinstance(module, torch.nn.Linear) and tensor is not None and module is not loaded.get_output_embeddings():
            expected[tensor.name] = torch.zeros(module.in_features)

            def add(_: object, inputs: tuple[torch.Tensor], name: str = tensor.name) -> None:
                expected[name] += inputs[0].float().square().sum((0, 1))

            module.register_forward_pre_hook(add)
    with torch.inference_mode():
        for row in ROWS:
            loaded(torch.tensor([row]))
    tokens = sum(map(len, ROWS))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(found[name], values / tokens, rtol=0.05, atol=0.02 * float(values.mean()) / tokens), name
    assert progress.updates[-1] == {"done": tokens, "total": tokens, "unit": "tokens"}


def test_a_stop_ends_it(tmp_path: Path) -> None:
    model, layout, file, start = written(tmp_path, "llama")
    stop = threading.Event()
    stop.set()

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        importance_matrix(layout, file, start, model, ROWS, RecordedProgress(), stop)


def test_rows_come_from_all_parts_of_the_data_and_are_bounded() -> None:
    rows = [[at] * 10 for at in range(1000)]

    chosen = choose_rows(rows, most_tokens=1000)

    assert sum(map(len, chosen)) == 1000
    assert chosen[0][0] == 0
    assert chosen[-1][0] == 990
    assert choose_rows([[1, 2], [3]], most_tokens=1000) == [[1, 2], [3]]
    assert sum(map(len, choose_rows([[1] * 10_000], most_tokens=5000))) <= 5000
