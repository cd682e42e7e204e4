"""Links in folders of models and data: those that leave the folder are refused, others are followed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.sources.source import FolderSource, SourceKind


def test_a_link_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("a private key")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "merges.txt").symlink_to(secret)

    with pytest.raises(InvalidInput) as refused:
        FolderSource((tmp_path / "base").as_uri(), "spec.baseModel", SourceKind.MODEL)

    assert str(refused.value) == (
        f"spec.baseModel.uri: merges.txt in {(tmp_path / 'base').as_uri()} is a link that leaves the folder, to "
        f"{secret}; replace the link with the file if it belongs here, otherwise remove it"
    )


def linked(folder: Path, name: str, target: str | Path) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    return folder / name


@pytest.mark.parametrize("kind", SourceKind)
@pytest.mark.parametrize(
    "links",
    [
        {"a.json": "../secret.json"},
        {"a.json": "b.json", "b.json": "../secret.json"},
        {"a.json": ".hidden.json", ".hidden.json": "../secret.json"},
        {"a.json": "other/secret.json", "other": ".."},
        {"a.json": "../models--acme--lm/secret.json"},
        {"a.json": "../models--acme--lm/blobs/secret.json"},
        {"a.json": "/proc/self/environ"},
    ],
)
def test_links_that_leave_their_folder_by_other_ways_are_refused(
    tmp_path: Path, links: Mapping[str, str], kind: SourceKind
) -> None:
    for path in ("secret.json", "models--acme--lm/secret.json", "models--acme--lm/blobs/secret.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    for name, target in links.items():
        linked(tmp_path / "source", name, target)

    with pytest.raises(InvalidInput, match=r"^spec\.source\.uri: a\.json in .* is a link that leaves the folder, to /"):
        FolderSource((tmp_path / "source").as_uri(), "spec.source", kind)


@pytest.mark.parametrize("target", ["gone.json", "a.json"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "b.json").write_text("{}")
    linked(tmp_path, "a.json", target)

    with pytest.raises(InvalidInput, match=rf": a\.json in .* is a link to {target}, where there is no file; replace"):
        FolderSource(tmp_path.as_uri(), "spec.source", SourceKind.DATA)


def test_a_link_to_a_folder_is_refused_in_a_data_folder_where_its_files_would_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "b.jsonl").write_text("{}\n")
    source = linked(tmp_path / "source", "shards", tmp_path / "shards").parent
    (source / "a.jsonl").write_text("{}\n")
    (source / "config.json").write_text("{}")
    linked(source, ".cache", tmp_path / "shards")

    with pytest.raises(
        InvalidInput, match=r"^spec\.source\.uri: shards in .* is a link to a folder, whose files would "
    ):
        FolderSource(source.as_uri(), "spec.source", SourceKind.DATA)

    assert [each.path for each in FolderSource(source.as_uri(), "spec.source", SourceKind.MODEL).files] == [
        "config.json"
    ]


def test_links_within_the_folder_and_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blob = "0123456789" * 4
    repository = tmp_path / "hub" / "models--acme--lm"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / blob).write_text("{}")
    snapshot = repository / "snapshots" / ("f" * 40)
    linked(snapshot, "config.json", f"../../blobs/{blob}")
    linked(snapshot, "generation_config.json", "config.json")
    plain = tmp_path / "downloaded"  # as huggingface_hub downloaded into a folder until its version 0.23
    linked(plain, "config.json", repository / "blobs" / blob)
    (plain / ".cache").mkdir()
    linked(plain, ".cache/other.json", "/etc/hostname")
    linked(plain, "train.py", "/etc/hostname")

    linked(tmp_path, "link-to-the-snapshot", snapshot)
    for folder in (snapshot, plain, tmp_path / "link-to-the-snapshot"):
        source = FolderSource(folder.as_uri(), "spec.baseModel", SourceKind.MODEL)
        assert "config.json" in [entry.path for entry in source.files]
        assert (source.fetch(["config.json"]) / "config.json").read_text() == "{}"


def test_a_single_data_file_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    link = linked(tmp_path / "links", "train.jsonl", tmp_path / "rows.jsonl")

    assert FolderSource(link.as_uri(), "spec.dataset.train", SourceKind.DATA).files[0].path == "train.jsonl"
