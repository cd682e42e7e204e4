"""`edgetune prune` on a work folder: it prints, asks and removes; what must be kept is tested in jobs/runtime."""

import fcntl
import json
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import AccessDenied
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.used_stages import MERGED, TRAINED, make_stage
from support.work_folder import WorkFolder


@pytest.fixture
def with_leftovers(work_folder: WorkFolder) -> WorkFolder:
    """A work folder whose object has used another output before, of 20 bytes and a manifest of 14."""
    store = LocalFolderStore(work_folder.store.as_uri())
    make_stage(store, Stage.MERGE, MERGED)
    Uses(store, "pumps").mark(Use(Stage.MERGE, MERGED))
    return work_folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_what_no_object_and_no_version_needs_is_printed_and_removed(with_leftovers: WorkFolder) -> None:
    folder = with_leftovers.path / "store"
    before = {name for name in files(folder) if MERGED not in name}
    version = with_leftovers.edgetune("list").stdout

    done = with_leftovers.edgetune("prune", "--yes")

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "what     name                 size   why",
        f"output   merge {MERGED[:12]}   34 B   no longer needed by pumps",
        "34 B can be removed",
        "Removed 34 B",
    ]
    assert files(folder) == before
    assert with_leftovers.edgetune("list").stdout == version


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--dry-run",), 0, ""),
        ((), 2, "Nothing is removed without a terminal to ask on: add --yes, or --dry-run"),
        (("--older-than", "1d", "--yes"), 0, ""),
        (("--older-than", "soon"), 2, "--older-than soon: give a time such as 12h or 7d"),
    ],
)
def test_nothing_is_removed_without_a_confirmation_or_if_it_was_used_since(
    with_leftovers: WorkFolder, options: tuple[str, ...], code: int, said: str
) -> None:
    before = files(with_leftovers.path / "store")

    done = with_leftovers.edgetune("prune", *options)

    assert (done.exit_code, done.stderr.strip()) == (code, said)
    assert files(with_leftovers.path / "store") == before


def test_a_second_prune_finds_nothing(with_leftovers: WorkFolder) -> None:
    with_leftovers.edgetune("prune", "--yes")
    (with_leftovers.path / "work").mkdir()  # as a run leaves it

    assert with_leftovers.edgetune("prune", "--yes").stdout == "Nothing can be removed\n"


def test_downloaded_models_and_what_a_killed_run_left_are_removed_too(work_folder: WorkFolder) -> None:
    for name in ("models/0123/model.gguf", "work/team-a/pumps-train/1/scratch/x"):
        (work_folder.path / name).parent.mkdir(parents=True)
        (work_folder.path / name).write_bytes(b"ten bytes.")

    done = work_folder.edgetune("prune", "-y")

    assert done.stdout.splitlines()[-1] == "Removed 20 B"
    assert not {"models", "work"} & {path.name for path in work_folder.path.iterdir()}


def test_json_has_every_output_with_its_bytes_and_whether_it_was_removed(with_leftovers: WorkFolder) -> None:
    planned = json.loads(with_leftovers.edgetune("prune", "-o", "json").stdout)
    removed = json.loads(with_leftovers.edgetune("prune", "-o", "json", "--yes").stdout)

    for found, is_removed in ((planned, False), (removed, True)):
        (store,) = found["stores"]
        assert (store["uri"], store["bytes"]) == (with_leftovers.store.as_uri(), 34)
        assert [(row["what"], row["digest"], row["bytes"], row["removed"]) for row in store["rows"]] == [
            ("output", MERGED, 34, is_removed)
        ]
        assert found["removedBytes"] == store["removedBytes"] == 34 * is_removed
    assert not any(MERGED in name for name in files(with_leftovers.path / "store"))


def test_json_is_not_printed_if_the_removal_fails(with_leftovers: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_store: LocalFolderStore, key: str) -> None:
        raise AccessDenied(f"{key} cannot be deleted")

    monkeypatch.setattr(LocalFolderStore, "delete", refuse)

    done = with_leftovers.edgetune("prune", "-o", "json", "--yes")

    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be deleted" in done.stderr


def test_an_object_that_is_running_is_left_alone(with_leftovers: WorkFolder) -> None:
    before = files(with_leftovers.path / "store")
    with (with_leftovers.path / "objects" / "team-a" / "pumps.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = with_leftovers.edgetune("prune", "--yes")

    assert done.exit_code == 3
    assert "is working on this object" in done.stderr
    assert files(with_leftovers.path / "store") == before


def need_a_training(work_folder: WorkFolder) -> None:
    """Let the object's status name the output of a training that nothing else needs."""
    store = LocalFolderStore(work_folder.store.as_uri())
    make_stage(store, Stage.TRAIN, TRAINED)
    Uses(store, "pumps").mark(Use(Stage.TRAIN, TRAINED))
    document = work_folder.document()
    rows = document["status"]["stages"]
    next(row for row in rows if row["name"] == "train").update(digest=TRAINED, state="Running")
    work_folder.write(document)


@pytest.mark.parametrize("is_linked", [False, True], ids=["path", "path with a link"])
def test_a_named_store_of_the_work_folder_keeps_what_its_objects_need(
    with_leftovers: WorkFolder, is_linked: bool
) -> None:
    need_a_training(with_leftovers)
    before = files(with_leftovers.store)
    link = with_leftovers.path / "link"
    link.symlink_to(with_leftovers.store)

    done = with_leftovers.edgetune("prune", str(link if is_linked else with_leftovers.store), "--yes")

    assert done.stdout.splitlines()[-1] == "Removed 34 B"
    assert files(with_leftovers.store) == {name for name in before if MERGED not in name}


def test_a_version_that_an_object_of_the_work_folder_pins_is_shown_and_kept(work_folder: WorkFolder) -> None:
    (work_folder.store / "models" / "pumps" / "latest.json").unlink()
    (version,) = (work_folder.store / "models" / "pumps" / "versions").glob("*.json")
    version.write_text(json.dumps({**json.loads(version.read_text()), "published": False}))
    document = {**work_folder.document(), "status": {}}
    work_folder.write(document)
    unpinned = work_folder.edgetune("prune", str(work_folder.store), "--dry-run", "-o", "json")
    work_folder.write({**document, "spec": {**document["spec"], "publish": {"pin": version.stem[:12]}}})

    listed = work_folder.edgetune("list", str(work_folder.store))
    kept = work_folder.edgetune("prune", str(work_folder.store), "--dry-run", "-o", "json")

    def versions(found: str) -> list[str]:
        return [row["version"] for row in json.loads(found)["stores"][0]["rows"] if row["what"] == "version"]

    assert "pinned" in listed.stdout
    assert (versions(unpinned.stdout), versions(kept.stdout)) == ([version.stem], [])


def test_a_running_object_that_uses_a_named_store_is_left_alone(with_leftovers: WorkFolder) -> None:
    before = files(with_leftovers.store)
    with (with_leftovers.path / "objects" / "team-a" / "pumps.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = with_leftovers.edgetune("prune", str(with_leftovers.store), "--yes")

    assert done.exit_code == 3
    assert files(with_leftovers.store) == before


def test_in_a_store_that_no_object_here_uses_seven_days_are_kept(with_leftovers: WorkFolder, tmp_path: Path) -> None:
    other = WorkFolder(tmp_path / "other")
    store = str(with_leftovers.store)

    kept = other.edgetune("prune", store, "--yes")
    planned = other.edgetune("prune", store, "--dry-run", "--older-than", "0s")

    assert kept.stdout == "Nothing can be removed\n"
    assert f"merge {MERGED[:12]}" in planned.stdout
