"""The folder of `edgetune pull`: what others have in it, what was damaged in it, and what cannot be written."""

from pathlib import Path

import pytest

from support.devices import WEIGHTS, address, is_version, point_to, publish_and_pull, pull, refused
from support.published import MODEL, PublishedModel


def test_files_of_others_in_the_folder_stay(model: PublishedModel, device: Path) -> None:
    foreign = [device / place / "of-another-program" / "data" for place in ("versions", "incoming")]
    for path in foreign:
        path.parent.mkdir(parents=True)
        path.write_text("precious")

    for _ in range(2):
        publish_and_pull(model, device)

    assert [path.read_text() for path in foreign] == ["precious", "precious"]


@pytest.mark.parametrize("content", [None, b"cut"])
def test_a_file_that_the_current_version_has_lost_comes_back(
    content: bytes | None, model: PublishedModel, device: Path
) -> None:
    first, second = (publish_and_pull(model, device) for _ in range(2))
    (device / "current" / WEIGHTS).unlink()
    if content is not None:
        (device / "current" / WEIGHTS).write_bytes(content)

    said = pull(address(model), device)

    lost = next(each.bytes for each in second.edge.files if each.path == WEIGHTS)
    assert f": {lost} B of " in said
    assert is_version(device, second)
    assert is_version(device, first, "previous")


def test_what_arrived_of_a_version_that_was_replaced_takes_no_room(model: PublishedModel, device: Path) -> None:
    model.publish()
    stale = device / "incoming" / ("0" * 64)
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an older version")
    weights = model.folder.parent / "store" / model.publish().edge.key / WEIGHTS
    weights.rename(weights.with_name("away"))

    assert "there is nothing at" in refused(address(model), device)
    assert not stale.exists()


def test_an_object_that_may_not_be_read_any_more_keeps_what_has_arrived(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    document = model.publish()
    weights = next(each for each in document.edge.files if each.path == WEIGHTS)
    file = tmp_path / "store" / document.edge.key / WEIGHTS
    arrived = device / "incoming" / weights.sha256
    arrived.parent.mkdir(parents=True)
    arrived.write_bytes(file.read_bytes()[:10])
    file.rename(file.with_name("away"))

    refused(address(model), device)
    assert arrived.stat().st_size == 10

    file.with_name("away").rename(file)
    assert f": {weights.bytes - 10} B of " in pull(address(model), device)
    assert is_version(device, document)


def test_what_cannot_be_read_in_the_folder_is_named(model: PublishedModel, device: Path) -> None:
    model.publish()
    (device / "state.json").mkdir(parents=True)

    assert f"{device}/state.json: Is a directory" in refused(address(model), device)


def test_a_version_with_two_files_of_one_name_changes_nothing(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    first, second = publish_and_pull(model, device), model.publish()
    one, two, three = second.edge.files
    point_to(second, [one, two, three.model_copy(update={"path": one.path})], tmp_path)

    assert "has two files of the same name" in refused(address(model), device)
    assert is_version(device, first)


def test_a_document_at_the_address_of_another_version_is_refused(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    model.publish()
    other = f"models/{MODEL}/versions/{'0' * 64}.json"
    (tmp_path / "store" / other).write_bytes((tmp_path / "store" / "models" / MODEL / "latest.json").read_bytes())

    assert "is damaged: it is the document of version" in refused(f"{model.store.uri}/{other}", device)
    assert not (device / "current").exists()


def test_a_document_that_was_cut_is_damaged(model: PublishedModel, device: Path, tmp_path: Path) -> None:
    model.publish()
    pointer = tmp_path / "store" / "models" / MODEL / "latest.json"
    pointer.write_text(pointer.read_text()[:100])

    assert f"{address(model)} is damaged: Invalid JSON" in refused(address(model), device)
