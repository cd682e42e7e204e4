"""The card of an adapter names its base as people know it, and how to load both."""

from pathlib import Path

from edgetune_contract.spec import BaseModelSpec
from edgetune_jobs.models.adapters.adapter_card import write_card


def card(folder: Path, rank: int = 16, **base: str) -> str:
    write_card(folder, BaseModelSpec.model_validate(base), rank)
    return (folder / "README.md").read_text()


def test_a_base_of_the_hub_is_named_with_its_commit(tmp_path: Path) -> None:
    found = card(tmp_path, uri="hf://org/model", revision="0123456789" * 4)

    assert found.startswith("---\nbase_model: org/model\nlibrary_name: peft\n")
    assert f"[org/model](https://huggingface.co/org/model) at commit `{'0123456789' * 4}`" in found
    assert 'AutoPeftModelForCausalLM.from_pretrained("adapter")' in found
    assert f"vllm serve org/model --revision {'0123456789' * 4} --enable-lora --max-lora-rank 16 " in found


def test_a_base_in_a_bucket_is_named_by_its_uri_and_downloaded_first(tmp_path: Path) -> None:
    found = card(tmp_path, uri="s3://models/smollm2", rank=12)

    assert "base_model" not in found
    assert "fits only its base, `s3://models/smollm2`." in found
    assert "# aws s3 cp --recursive s3://models/smollm2 base\n" in found
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")' in found
    assert "vllm serve base --enable-lora --max-lora-rank 16 " in found


def test_a_base_in_a_folder_is_named_by_its_path(tmp_path: Path) -> None:
    assert "vllm serve /models/base --enable-lora --max-lora-rank 512 " in card(
        tmp_path, uri="file:///models/base", rank=400
    )
