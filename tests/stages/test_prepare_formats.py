"""prepare refuses edge formats and edge budgets that the base or the image cannot support."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.llama_cpp import HOW_TO_INSTALL
from edgetune_jobs.stages import prepare
from support.base_folder import make_base
from support.workplace import Workplace, make_workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return make_workplace(tmp_path)


TOO_NARROW = (
    "spec.quantization.formats[1]: GGUF-Q8_0 does not support this model: the row length of the tensor "
    "model.embed_tokens.weight is 8, not a multiple of the block size 32; remove the format, or use another base model"
)
BOTH = {"quantization": {"formats": ["BitsAndBytesInt8", "GGUF-Q8_0"]}}


def test_a_base_that_cannot_be_written_in_an_edge_format_is_refused_before_training(workplace: Workplace) -> None:
    assert workplace.refusal(**BOTH) == TOO_NARROW


def test_a_format_that_is_added_later_is_checked_although_prepare_is_already_done(workplace: Workplace) -> None:
    prepared, _ = workplace.run()

    with pytest.raises(InvalidInput) as caught:
        prepare.recheck(workplace.context(**BOTH), prepared.metrics)
    assert str(caught.value) == TOO_NARROW


def test_a_model_type_that_a_format_does_not_support_is_refused(workplace: Workplace) -> None:
    shutil.rmtree(workplace.folder / "base")
    olmo = {"model_type": "olmo", "architectures": ["OlmoForCausalLM"]}
    make_base(workplace.folder / "base", config=olmo)

    for edge_format in ("GGUF-Q8_0", "CompressedTensorsW8A8", "GGUF-LoRA"):
        refusal = workplace.refusal(quantization={"formats": [edge_format]})

        assert refusal.startswith(f"spec.quantization.formats[0]: {edge_format} does not support this model: ")
        assert "the model type 'olmo' is not one of " in refusal
        assert "llama, mistral" in refusal


NOT_MEASURABLE: dict[str, Any] = {"quantization": {"formats": ["GGUF-Q8_0"]}, "evaluation": {"edge": {}}}
NO_LLAMA_CPP = (
    f"spec.evaluation.edge: GGUF-Q8_0 needs llama.cpp, which is not installed: {HOW_TO_INSTALL}; or remove "
    "spec.evaluation.edge"
)
K_QUANT: dict[str, Any] = {"quantization": {"formats": ["BitsAndBytesInt8", "GGUF-Q4_K_M"]}}
NO_QUANTIZER = (
    f"spec.quantization.formats[1]: GGUF-Q4_K_M is written by llama.cpp, which is not installed: {HOW_TO_INSTALL}; or "
    "use GGUF-Q8_0"
)


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)


@pytest.mark.usefixtures("without_llama_cpp")
def test_an_edge_budget_that_this_image_cannot_measure_is_refused_before_training(
    workplace: Workplace,
) -> None:
    assert workplace.refusal(**NOT_MEASURABLE) == NO_LLAMA_CPP


@pytest.mark.usefixtures("without_llama_cpp")
def test_an_edge_budget_that_is_added_later_is_checked_although_prepare_is_already_done(
    workplace: Workplace,
) -> None:
    prepared, _ = workplace.run()

    with pytest.raises(InvalidInput) as caught:
        prepare.recheck(workplace.context(**NOT_MEASURABLE), prepared.metrics)
    assert str(caught.value) == NO_LLAMA_CPP


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_format_that_llama_cpp_writes_is_refused_without_it_before_training(workplace: Workplace) -> None:
    assert workplace.refusal(**K_QUANT) == NO_QUANTIZER


@pytest.mark.usefixtures("without_llama_cpp")
def test_such_a_format_that_is_added_later_is_refused_too(workplace: Workplace) -> None:
    prepared, _ = workplace.run()

    with pytest.raises(InvalidInput) as caught:
        prepare.recheck(workplace.context(**K_QUANT), prepared.metrics)
    assert str(caught.value) == NO_QUANTIZER
