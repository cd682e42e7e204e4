"""The tutorials of a laptop, followed with a tiny model: what a reader types, and what the page says is printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.llama_cpp import python_path_with_llama_cpp
from support.tutorials import NewReader, Reader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def trained(
    tickets_base: Path, new_reader: NewReader, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Reader, Path]]:
    """A reader who has followed own-data.md, and a copy of what it left, with which all other tutorials here begin."""
    reader = new_reader(base=tickets_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path_with_llama_cpp())  # as after `make demo`
        reader.follow("own-data.md")
        saved = tmp_path_factory.mktemp("saved") / "edgetune"
        reader.save(saved)
        yield reader, saved


@pytest.fixture
def reader(trained: tuple[Reader, Path]) -> Reader:
    """The reader, who has the trained model and has followed no other tutorial."""
    reader, saved = trained
    reader.begin_again(saved)
    return reader


def test_own_data_in_ten_minutes(trained: tuple[Reader, Path]) -> None:
    _, saved = trained
    assert (saved / ".edgetune" / "store" / "default" / "models" / "tickets" / "latest.json").is_file()
    assert list((saved / ".edgetune" / "reports").rglob("*.html"))


@pytest.mark.parametrize("page", ["gates.md", "roll-back.md", "devices.md"])
def test_a_tutorial_about_the_trained_model(page: str, reader: Reader) -> None:
    reader.follow(page)


def test_choosing_a_format(reader: Reader) -> None:
    reader.follow("formats.md")
