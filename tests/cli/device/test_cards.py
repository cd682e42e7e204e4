"""`edgetune pull` places the model card beside the model, verified like the model's own files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.digest import version_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.files import fingerprint
from support.devices import address, is_version, pull, refused
from support.published import MODEL, PublishedModel


@pytest.fixture
def document(model: PublishedModel) -> VersionDocument:
    model.has_cards = True
    return model.publish()


def card_of(model: PublishedModel, document: VersionDocument) -> Path:
    folder = Path(model.store.uri.removeprefix("file://")) / "models" / MODEL / "versions" / document.version
    return folder / document.edge.artifact.name / "README.md"


def test_the_card_is_beside_the_model(model: PublishedModel, device: Path, document: VersionDocument) -> None:
    said = pull(address(model), device)

    assert is_version(device, document)
    (entry,) = document.edge.cards
    assert fingerprint(device / "current" / "README.md").sha256 == entry.sha256
    assert said.rstrip().endswith("3.2 kB of 3.2 kB downloaded")
    assert "up to date" in pull(address(model), device)


def test_a_card_that_is_lost_comes_back(model: PublishedModel, device: Path, document: VersionDocument) -> None:
    pull(address(model), device)
    (device / "current").resolve().chmod(0o755)
    (device / "current" / "README.md").unlink()

    pull(address(model), device)

    assert is_version(device, document)


class _PowerCut(BaseException):
    """Ends a pull as a power cut does."""


def publish_another_card(model: PublishedModel, document: VersionDocument, text: str) -> VersionDocument:
    """The version with some text in its card, at the pointer; its files stay."""
    card = card_of(model, document)
    card.write_bytes(card.read_bytes()[:-4] + text.encode())
    entry = fingerprint(card).entry("README.md")
    changed = document.model_copy(update={"edge": document.edge.model_copy(update={"cards": (entry,)})})
    (card.parents[3] / "latest.json").write_text(changed.model_dump_json(exclude_none=True))
    return changed


def cut_power(monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """Let a power cut come before a change of the disk, by its number."""
    left = before

    def cut(change: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _PowerCut
            return change(*arguments, **options)

        return called

    for name in ("rename", "replace", "symlink_to", "hardlink_to", "unlink", "mkdir", "write_bytes"):
        monkeypatch.setattr(Path, name, cut(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", cut(shutil.rmtree))


def test_while_another_card_of_the_current_version_comes_the_model_stays(
    model: PublishedModel, device: Path, document: VersionDocument
) -> None:
    previous, before, cuts = document, model.publish(), 0
    for each in (f"{model.store.uri}/{version_key(MODEL, previous.version)}", address(model)):
        pull(each, device)
    is_cut = True
    while is_cut:
        is_cut, after = False, publish_another_card(model, before, f"{cuts:04}")
        with pytest.MonkeyPatch.context() as monkeypatch:
            cut_power(monkeypatch, before=cuts)
            try:
                pull(address(model), device)
            except _PowerCut:
                is_cut = True
                cuts += 1
        assert is_version(device, before) or is_version(device, after)
        pull(address(model), device)
        assert is_version(device, after)
        assert is_version(device, previous, "previous")
        before = after
    assert cuts > 10


def test_a_changed_card_is_refused_and_nothing_changes(
    model: PublishedModel, device: Path, document: VersionDocument
) -> None:
    card = card_of(model, document)
    card.write_bytes(card.read_bytes().replace(b"unknown", b"apache2"))

    assert f"{card} is damaged: its SHA-256 is" in refused(address(model), device)
    assert not (device / "current").exists()


@pytest.mark.parametrize("path", ["../README.md", "model.safetensors"])
def test_a_card_with_another_name_is_refused(
    model: PublishedModel, device: Path, document: VersionDocument, path: str
) -> None:
    entry = document.edge.cards[0].model_copy(update={"path": path})
    edge = document.edge.model_copy(update={"cards": (entry,)})
    pointer = card_of(model, document).parents[3] / "latest.json"
    pointer.write_text(document.model_copy(update={"edge": edge}).model_dump_json(exclude_none=True))

    said = refused(address(model), device)

    assert "which leaves its folder" in said or "has two files of the same name" in said
