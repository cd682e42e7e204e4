"""Text parts of multimodal models: the plain text model that is made has the logits of the whole model, bit for bit."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import SourceModelFolder
from edgetune_jobs.models.inspection import inspect_base
from edgetune_jobs.models.trial.process import shared_trial
from edgetune_jobs.models.weights import WEIGHTS_INDEX, fill
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from edgetune_jobs.tensors.text_model import TextModel, is_multimodal, text_model
from support.base_folder import make_base
from support.multimodal import ARCHITECTURES, make_multimodal, read_config

TEXT_CLASSES = {
    "fuyu": "PersimmonForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "glmasr": "LlamaForCausalLM",
    "idefics3": "LlamaForCausalLM",
    "internvl": "Qwen2ForCausalLM",
    "lfm2_vl": "Lfm2ForCausalLM",
    "llava": "LlamaForCausalLM",
    "llava_next": "LlamaForCausalLM",
    "llava_onevision": "Qwen2ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "nemotron_h_omni": "NemotronHForCausalLM",
    "qwen2_5_vl": "Qwen2ForCausalLM",
    "qwen2_audio": "Qwen2ForCausalLM",
    "qwen2_vl": "Qwen2ForCausalLM",
    "qwen3_vl": "Qwen3ForCausalLM",
    "smolvlm": "LlamaForCausalLM",
    "voxtral": "LlamaForCausalLM",
}
REFUSED = {
    "cohere2_vision": "computes other logits from the same hidden states, unlike Cohere2ForCausalLM",
    "glm4v": "its text part (glm4v_text) is not a causal language model in transformers",
    "paligemma": "numbers the positions of a text differently, unlike GemmaForCausalLM",
}


def source_of(folder: Path) -> FolderSource:
    return FolderSource(folder.as_uri(), "spec.baseModel", SourceKind.MODEL)


def text_part_of(folder: Path, target: Path) -> TextModel:
    source = text_model(source_of(folder), shared_trial(), target)
    assert isinstance(source, TextModel)
    return source


def written(source: TextModel) -> Path:
    return source.fetch([file.path for file in source.files])


def logits_of(model: Any) -> torch.Tensor:
    """Logits of two texts [2, tokens, vocabulary], of which the second is padded at its beginning."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ids = torch.randint(5, 300, (2, 23))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids, attention_mask=mask).logits
    logits[1, :5] = 0  # of padding
    return logits


def load_text_model(folder: Path) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("model_type", sorted(TEXT_CLASSES))
def test_the_text_part_has_the_logits_of_the_whole_model(model_type: str, tmp_path: Path) -> None:
    whole = make_multimodal(tmp_path / "whole", model_type)

    text = load_text_model(written(text_part_of(whole, tmp_path / "text")))

    assert type(text).__name__ == TEXT_CLASSES[model_type]
    expected = logits_of(getattr(transformers, ARCHITECTURES[model_type]).from_pretrained(whole))
    assert torch.equal(logits_of(text), expected)
    assert expected.std() > 0.01


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_text_part_that_would_not_compute_the_same_is_refused(model_type: str, tmp_path: Path) -> None:
    whole = make_multimodal(tmp_path / "whole", model_type)

    message = refusal(whole, tmp_path)

    assert REFUSED[model_type] in message
    assert f"has the multimodal architecture '{ARCHITECTURES[model_type]}', whose text part" in message


def test_every_architecture_is_tried() -> None:
    assert set(ARCHITECTURES) == {*TEXT_CLASSES, *REFUSED}


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_output_head_is_tied_as_in_the_whole_model(is_tied: bool, tmp_path: Path) -> None:
    whole = make_multimodal(tmp_path / "whole", "internvl", whole={"tie_word_embeddings": is_tied})

    text = load_text_model(written(text_part_of(whole, tmp_path / "text")))

    assert (text.lm_head.weight is text.model.embed_tokens.weight) == is_tied
    assert torch.equal(logits_of(text), logits_of(transformers.InternVLForConditionalGeneration.from_pretrained(whole)))


def test_weights_under_their_names_in_the_model_are_found_too(tmp_path: Path) -> None:
    """transformers renames the stored tensors of Gemma 3, but newer files have the model's own names."""
    whole = make_multimodal(tmp_path / "whole", "gemma3")
    expected = written(text_part_of(whole, tmp_path / "expected")) / "model.safetensors"
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(whole)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert not tensors.keys() & load_file(whole / "model.safetensors").keys()
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})

    found = written(text_part_of(whole, tmp_path / "text")) / "model.safetensors"

    assert same_tensors(found, expected)


def test_a_configuration_with_the_text_fields_beside_the_vision_part_is_read(tmp_path: Path) -> None:
    """Repositories of Qwen2-VL and Qwen2.5-VL have no text_config."""
    whole = make_multimodal(tmp_path / "whole", "qwen2_vl")
    expected = logits_of(load_text_model(written(text_part_of(whole, tmp_path / "expected"))))
    config = read_config(whole)
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {name: value for name, value in text.items() if name not in ("model_type", "layer_types")}
    flat |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    (whole / "config.json").write_text(json.dumps({**flat, **config}))

    assert torch.equal(logits_of(load_text_model(written(text_part_of(whole, tmp_path / "text")))), expected)


def test_special_tokens_are_those_of_the_whole_model(tmp_path: Path) -> None:
    whole = make_multimodal(tmp_path / "whole", "gemma3")
    (whole / "config.json").write_text(json.dumps({**read_config(whole), "eos_token_id": [1, 106]}))

    assert read_config(written(text_part_of(whole, tmp_path / "text")))["eos_token_id"] == [1, 106]


def test_a_large_text_part_has_several_files_and_an_index(tmp_path: Path) -> None:
    part = text_part_of(make_multimodal(tmp_path / "whole", "llava"), tmp_path / "text")
    sharded = TextModel(part._whole, part._part, part._tensors, tmp_path / "sharded", max_file_bytes=150_000)

    folder = written(sharded)

    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert (folder / WEIGHTS_INDEX).is_file()
    assert not any(load_text_model(folder).state_dict()[name].sub(tensor).any() for name, tensor in _all(shards))


def test_any_range_of_a_file_can_be_read(tmp_path: Path) -> None:
    part = text_part_of(make_multimodal(tmp_path / "whole", "llava"), tmp_path / "text")
    content = (written(part) / "model.safetensors").read_bytes()
    model = SourceModelFolder(part, "the model")

    for start in (0, 7, 1_000, len(content) // 3, len(content) - 5):
        buffer = bytearray(70_001)
        length = fill(model, "model.safetensors", start, memoryview(buffer))
        assert bytes(buffer[:length]) == content[start : start + len(buffer)]
    assert part.read_into("model.safetensors", len(content), memoryview(bytearray(4))) == 0


def drop(name: str, tensors: dict[str, torch.Tensor]) -> None:
    del tensors[name]


def shrink(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[name] = tensors[name][:-1].clone()


def add_twice(name: str, tensors: dict[str, torch.Tensor]) -> None:
    tensors[name.replace("language_model.model.", "model.language_model.")] = tensors[name].clone()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop, "1 tensor of the text part of LlavaForConditionalGeneration is missing from the weights (first: model."),
        (shrink, "config.json does not describe the text part of LlavaForConditionalGeneration: language_model.model."),
        (add_twice, "is stored twice; save or copy the model again"),
    ],
)
def test_tensors_that_are_not_those_of_the_text_part_are_refused(
    change: Callable[[str, dict[str, torch.Tensor]], None], reason: str, tmp_path: Path
) -> None:
    whole = make_multimodal(tmp_path / "whole", "llava")
    tensors = load_file(whole / "model.safetensors")
    change("language_model.model.layers.1.self_attn.q_proj.weight", tensors)
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})

    assert reason in refusal(whole, tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"text_config": {"model_type": "llama", "num_hidden_layers": 10**6}},
            "text_config.num_hidden_layers in config.json is 1,000,000, but must be from 1 to 1,000",
        ),
        ({"model_type": "unknown"}, "spec.baseModel: loading its config.json fails: "),
        (
            {"architectures": ["LlavaQwenForCausalLM"]},
            "has the multimodal architecture 'LlavaQwenForCausalLM', whose text part cannot be used: transformers has",
        ),
        ({"architectures": ["LlamaForCausalLM"]}, "transformers has no such model of this type"),
        ({"architectures": None}, "transformers has no such model of this type"),
        ({"architectures": ["AutoConfig"]}, "transformers has no such model of this type"),
    ],
)
def test_a_multimodal_configuration_that_cannot_be_used_is_refused(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    known = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}

    assert reason in refusal(make_base(tmp_path / "whole", config={**known, **config}), tmp_path)


def test_a_text_model_is_used_as_it_is(tmp_path: Path) -> None:
    source = source_of(make_base(tmp_path / "base"))

    assert not is_multimodal(source)
    assert text_model(source, shared_trial(), tmp_path / "text") is source


def test_a_multimodal_model_that_needs_its_own_code_is_refused_for_that(tmp_path: Path) -> None:
    code = {"model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling.Model"}, "vision_config": {}}
    source = source_of(make_base(tmp_path / "base", config=code))

    with pytest.raises(InvalidInput, match=r"config\.json has auto_map, so the model needs its own Python code"):
        inspect_base(text_model(source, shared_trial(), tmp_path / "text"))


def refusal(whole: Path, folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        text_model(source_of(whole), shared_trial(), folder / "refused")
    return str(caught.value)


def same_tensors(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _all(files: Sequence[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        yield from load_file(file).items()
