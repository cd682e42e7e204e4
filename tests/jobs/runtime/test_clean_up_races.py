"""Clean-ups that race with stages or other clean-ups, or are killed at any write: only used output is kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.digest import manifest_key, pointer_key, stage_key, use_key
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import Store
from support.used_stages import FIRST, MERGED, SECOND, SHARED, TRAINED, keys, make_model, make_stage


@dataclass
class RacingStore:
    """A store that runs an action right after, or before, the first call that matches."""

    store: Store
    matches: Callable[[str, tuple[Any, ...]], bool]
    action: Callable[[], object]
    before: bool = False
    has_run: bool = field(default=False)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            now = not self.has_run and self.matches(name, arguments)
            self.has_run |= now
            if now and self.before:
                self.action()
            result = method(*arguments, **options)
            if isinstance(result, Iterator):
                result = iter(list(result))  # list now, before the action
            if now and not self.before:
                self.action()
            return result

        return call


def deletes(key: str) -> Callable[[str, tuple[Any, ...]], bool]:
    return lambda name, arguments: name == "delete" and arguments == (key,)


def test_a_manifest_that_another_object_found_just_before_its_deletion_is_restored(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    manifest = store.read(manifest_key(Stage.TRAIN, TRAINED))
    files = {found.key for found in store.list(stage_key(Stage.TRAIN, TRAINED))}

    def begin() -> None:
        Uses(store, "newcomer").mark(Use(Stage.TRAIN, TRAINED))
        assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None

    racing = RacingStore(store, deletes(manifest_key(Stage.TRAIN, TRAINED)), begin, before=True)
    result = clean_up(racing, "sensor-faults")

    assert racing.has_run
    assert result.shared_stages == 1
    after = store.read(manifest_key(Stage.TRAIN, TRAINED))
    assert manifest is not None
    assert after is not None
    assert after.data == manifest.data
    assert {found.key for found in store.list(stage_key(Stage.TRAIN, TRAINED))} == files


def test_output_that_another_object_makes_again_while_files_are_removed_is_kept(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    folder = stage_key(Stage.TRAIN, TRAINED)

    def begin_and_end() -> None:
        uses = Uses(store, "newcomer")
        uses.mark(Use(Stage.TRAIN, TRAINED))
        assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is None
        store.put(f"{folder}/new/adapter/weights.safetensors", b"new weights")
        store.put(manifest_key(Stage.TRAIN, TRAINED), b"{}", if_none_match=True)

    racing = RacingStore(store, deletes(f"{folder}/0123/adapter/config.json"), begin_and_end)
    clean_up(racing, "sensor-faults")

    assert racing.has_run
    kept = {found.key for found in store.list(folder)}
    assert kept == {f"{folder}/new/adapter/weights.safetensors", f"{folder}/manifest.json"}


def test_two_objects_that_are_cleaned_up_at_the_same_time_leave_nothing(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)

    # The other clean-up runs completely, just before this one checks who else uses its first stage.
    racing = RacingStore(store, deletes(pointer_key("sensor-faults")), partial(clean_up, store, "pump-faults"))
    clean_up(racing, "sensor-faults")

    assert racing.has_run
    assert keys(store) == set()


def test_the_pointer_is_deleted_before_versions_manifests_before_files_and_marks_last(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    deleted: list[str] = []

    def watch(name: str, arguments: tuple[Any, ...]) -> bool:
        deleted.extend(arguments if name == "delete" else ())
        return False

    clean_up(RacingStore(store, watch, lambda: None), "sensor-faults")

    pointer, *rest = deleted
    assert pointer == pointer_key("sensor-faults")
    first_of_stages = [key.split("/")[1] for key in rest if key.endswith("manifest.json") and key.startswith("stages/")]
    assert first_of_stages == ["publish", "merge", "train", "prepare"]
    for stage, digest in SHARED:
        of_stage = [key for key in rest if f"/{digest}/" in key]
        assert of_stage[0] == manifest_key(stage, digest)
        assert of_stage[-1] == use_key(stage, digest, "sensor-faults")


class Killed(BaseException):
    """The process was killed."""


@dataclass
class KillingStore:
    """A store whose user is killed before or after its n-th write."""

    store: Store
    writes: int
    after: bool

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in ("put", "delete"):
            return method

        def write(*arguments: Any, **options: Any) -> Any:
            self.writes -= 1
            if self.writes == 0 and not self.after:
                raise Killed
            result = method(*arguments, **options)
            if self.writes == 0:
                raise Killed
            return result

        return write


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_clean_up_that_was_killed_at_any_write_is_completed_by_the_next(tmp_path: Path, after: bool) -> None:
    writes = 0
    while True:
        writes += 1
        store = LocalFolderStore((tmp_path / f"store-{writes}").as_uri())
        make_model(store, "sensor-faults", FIRST)
        make_model(store, "pump-faults", SECOND)
        Uses(store, "sensor-faults").mark(Use(Stage.QUANTIZE, MERGED))
        make_stage(store, Stage.QUANTIZE, MERGED)
        expected = {key for key in keys(store) if FIRST not in key and "sensor" not in key and "quantize" not in key}
        try:
            clean_up(KillingStore(store, writes, after), "sensor-faults")
        except Killed:
            for stage, digest in SHARED:
                assert store.read(manifest_key(stage, digest)) is not None, f"killed at write {writes}"
            clean_up(store, "sensor-faults")
        else:
            break
        assert keys(store) == expected, f"killed at write {writes}"
    assert writes > 15
