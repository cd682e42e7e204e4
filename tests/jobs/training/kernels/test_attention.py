"""Attention of joined examples: isolated, equal to that of each example alone, and refused where a model mixes them."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from edgetune_contract.training import Attention, Layout, TrainingSpec
from edgetune_jobs.training.kernels.attention import Arrangement, arrange, varlen_attention
from support.edge_models import make_kind, make_model

LENGTHS = (7, 40, 1, 23)
EQUAL_LENGTHS = (24, 24, 24)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that support Varlen: with grouped heads, with a sliding window of 8 tokens, with normalized queries."""
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": make_model(folder / "llama", "llama"),
        "mistral": make_model(folder / "mistral", "mistral", sliding_window=8),
        "qwen3": make_model(folder / "qwen3", "qwen3"),
    }


def load(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def examples(model: PreTrainedModel, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]


def joined_logits(model: PreTrainedModel, rows: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each example, computed on one row."""
    inputs = DataCollatorForLanguageModeling(0, padding_free=True)([{"input_ids": row, "labels": row} for row in rows])
    del inputs["labels"]
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0]
    return list(logits.split([len(row) for row in rows]))


@pytest.mark.parametrize("lengths", [LENGTHS, EQUAL_LENGTHS], ids=["unequal", "equal"])
@pytest.mark.parametrize("attention", ["Varlen", "Sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_joined_examples_have_the_logits_of_each_alone(
    bases: dict[str, Path], kind: str, attention: str, lengths: Sequence[int]
) -> None:
    model = load(bases[kind])
    rows = examples(model, lengths)
    with torch.inference_mode():
        alone = [model(torch.tensor([row]), use_cache=False).logits[0] for row in rows]

    assert arrange(TrainingSpec(attention=attention), model).attention == attention

    for ours, theirs in zip(joined_logits(model, rows), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["Varlen", "Sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_another_example_beside_it_changes_no_bit(
    bases: dict[str, Path], kind: str, attention: str, dtype: str
) -> None:
    model = load(bases[kind], dtype)
    assert arrange(TrainingSpec(attention=attention), model).attention == attention
    rows = examples(model)
    changed = [rows[0], [1 + token % 50 for token in rows[1]], *rows[2:]]

    before, after = joined_logits(model, rows), joined_logits(model, changed)

    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("lengths", [LENGTHS, EQUAL_LENGTHS], ids=["unequal", "equal"])
def test_varlen_attention_has_the_gradients_of_each_example_alone(lengths: Sequence[int]) -> None:
    generator = torch.Generator().manual_seed(2)
    joined = [torch.randn(1, heads, sum(lengths), 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    query, key, value = joined
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)

    output, _ = varlen_attention(
        torch.nn.Identity(), query, key, value, None, 0.5, cu_seq_lens_q=bounds, max_length_q=max(lengths)
    )
    output.square().sum().backward()

    apart = [tensor.detach().clone().requires_grad_() for tensor in joined]
    for begin, end in pairwise(bounds.tolist()):
        query, key, value = (tensor[0, :, begin:end] for tensor in apart)
        scores = query @ key.repeat_interleave(2, 0).transpose(1, 2) * 0.5
        scores = scores.masked_fill(torch.ones(end - begin, end - begin).triu(1).bool(), -torch.inf)
        (scores.softmax(-1) @ value.repeat_interleave(2, 0)).square().sum().backward()
    for ours, theirs in zip(joined, apart, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"softcap": 50.0}, "does not support softcap"),
        ({"s_aux": torch.zeros(4)}, "does not support s_aux"),
        ({"dropout": 0.1}, "does not support dropout"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "does not support a mask"),
        ({"is_causal": False}, "does not support attention to later tokens"),
        ({"cu_seq_lens_q": None}, "requires joined examples"),
    ],
)
def test_what_varlen_attention_would_compute_wrongly_is_refused(options: dict[str, Any], problem: str) -> None:
    tensor = torch.zeros(1, 4, 4, 8)
    given = {"attention_mask": None, "cu_seq_lens_q": torch.tensor([0, 4]), **options}

    with pytest.raises(ValueError, match=problem):
        varlen_attention(torch.nn.Identity(), tensor, tensor, tensor, **given)


MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA4 = {**MIXTRAL, "intermediate_size_mlp": 64, "head_dim": 16, "attention_chunk_size": 8, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "fields", "layout", "attention"),
    [
        ("phi3", {}, Layout.PADDING_FREE, Attention.VARLEN),
        ("gpt2", {"n_layer": 2, "n_head": 2}, Layout.PADDED, Attention.SDPA),  # it drops attention scores
        ("gemma2", {"head_dim": 16}, Layout.PADDED, Attention.SDPA),  # it caps scores
        ("mixtral", MIXTRAL, Layout.PADDING_FREE, Attention.VARLEN),
        ("phimoe", MIXTRAL, Layout.PADDING_FREE, Attention.VARLEN),
        # Their windows and chunks are in masks alone, which Varlen does not get.
        ("phimoe", {**MIXTRAL, "sliding_window": 8}, Layout.PADDED, Attention.SDPA),
        ("llama4_text", LLAMA4, Layout.PADDED, Attention.SDPA),
        ("mistral", {"sliding_window": 8}, Layout.PADDING_FREE, Attention.VARLEN),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": False}, Layout.PADDING_FREE, Attention.VARLEN),
        ("falcon", {}, Layout.PADDED, Attention.SDPA),  # mixes joined examples
        ("bloom", {"n_layer": 2, "n_head": 2}, Layout.PADDED, Attention.SDPA),
        ("mamba", {"state_size": 16}, Layout.PADDED, Attention.SDPA),
    ],
)
def test_layout_and_attention_are_those_that_the_model_supports(
    tmp_path: Path, kind: str, fields: dict[str, Any], layout: Layout, attention: Attention
) -> None:
    model = load(make_kind(tmp_path / kind, kind, vocab_size=256, **fields))
    own = model.config._attn_implementation

    found = arrange(TrainingSpec(), model)

    assert (found.layout, found.attention, found.in_inference) == (layout, attention, own)
    assert bool(found.warning) is (layout is Layout.PADDED)


def test_a_model_that_leaks_with_sdpa_only_is_trained_with_varlen(tmp_path: Path) -> None:
    folder = make_kind(tmp_path / "opt", "opt", vocab_size=256, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0)

    assert arrange(TrainingSpec(), load(folder)).attention is Attention.VARLEN
    found = arrange(TrainingSpec(attention="Sdpa"), load(folder))
    assert found.layout is Layout.PADDED
    assert found.warning == (
        "spec.training.layout: OPTForCausalLM mixes examples that are joined, so that its examples were padded instead"
    )


def test_a_model_whose_logits_are_not_finite_is_not_said_to_mix_examples(bases: dict[str, Path]) -> None:
    """Such as one whose weights are damaged, or overflow in 16 bits."""
    model = load(bases["llama"])
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))

    found = arrange(TrainingSpec(), model)

    assert found.layout is Layout.PADDED
    assert found.warning == (
        "spec.training.layout: LlamaForCausalLM has logits that are not finite, with which joined examples cannot be "
        "told apart, so that its examples were padded instead"
    )


def test_varlen_that_a_model_does_not_support_is_named(tmp_path: Path) -> None:
    model = load(make_kind(tmp_path / "gpt2", "gpt2", vocab_size=256, n_layer=2, n_head=2))

    assert arrange(TrainingSpec(attention="Varlen"), model) == Arrangement(
        Layout.PADDING_FREE,
        Attention.SDPA,
        "sdpa",
        "spec.training.attention: GPT2LMHeadModel does not support Varlen, and was trained with Sdpa",
    )
