"""The tutorials whose base is on the hub: with a hub on this machine, and with headers of Llama 3 8B without values."""

from pathlib import Path

import pytest

from support.tutorial_models import hub_with_the_chat_base, write_chat_base, write_llama_headers
from support.tutorials import NewReader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_chat_data_with_tools(new_reader: NewReader, tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_chat_base(base)
    with hub_with_the_chat_base(base) as hub:
        # The hub's client raises warnings; pytest's filter for them does not apply to the processes.
        reader = new_reader(base=base, HF_ENDPOINT=hub.endpoint, PYTHONWARNINGS="ignore")
        reader.follow("chat-with-tools.md")

    assert "model.safetensors" in hub.fetched


def test_llama_3_8b_on_one_gpu(new_reader: NewReader) -> None:
    reader = new_reader()
    reader.prepare = lambda _: None
    write_llama_headers(reader.home / "llama-3-8b")

    reader.follow("llama-3-8b.md")
