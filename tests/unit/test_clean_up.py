"""Clean-up: what an object leaves when it goes, in a folder and in a real bucket, at once with others, and killed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.digest import manifest_key, pointer_key, stage_key, use_key, version_key
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.clean_up import clean_up
from edgetune_jobs.folder_store import LocalFolderStore
from edgetune_jobs.s3_store import S3Store
from edgetune_jobs.store import Store
from edgetune_jobs.uses import Use, Uses
from support.fault_proxy import Fault, FaultProxy
from support.stage_runs import StageRuns
from support.versitygw import S3Server

PREPARED, TRAINED, MERGED = "a" * 64, "b" * 64, "c" * 64
FIRST, SECOND = "1" * 64, "2" * 64
SHARED = ((Stage.PREPARE, PREPARED), (Stage.TRAIN, TRAINED), (Stage.MERGE, MERGED))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Store:
    if request.param == "folder":
        return LocalFolderStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Store(server.location(s3_prefix).uri, server.client())


def make_stage(store: Store, stage: Stage, digest: str) -> None:
    """What a stage leaves: two files and their manifest; training also a checkpoint."""
    folder = stage_key(stage, digest)
    for key in (f"{folder}/0123/adapter/weights.safetensors", f"{folder}/0123/adapter/config.json"):
        store.put(key, b"ten bytes.")
    store.put(manifest_key(stage, digest), b'{"result": {}}')
    if stage is Stage.TRAIN:
        store.put(f"checkpoints/{digest}/step-100/4567/state.txt", b"state")
        store.put(f"checkpoints/{digest}/step-100/manifest.json", b"{}")


def make_model(store: Store, name: str, *versions: str) -> None:
    """A model with the stages that all models of these tests share, and a publish stage for each version."""
    uses = Uses(store, name)
    for stage, digest in (*SHARED, *((Stage.PUBLISH, version) for version in versions)):
        uses.mark(Use(stage, digest))
        make_stage(store, stage, digest)
    for version in versions:
        store.put(version_key(name, version), b"{}")
    store.put(pointer_key(name), b"{}")


def keys(store: Store) -> set[str]:
    """Every key of the store."""
    folders = ("stages", "checkpoints", "models", "uses", "scores", "sources")
    return {found.key for folder in folders for found in store.list(folder)}


def test_all_that_belongs_to_an_object_goes_and_is_counted(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST, SECOND)
    sizes = {found.key: found.bytes for folder in ("stages", "checkpoints", "models") for found in store.list(folder)}

    result = clean_up(store, "sensor-faults")

    assert keys(store) == set()
    assert result == CleanUpResult(removed_objects=len(sizes), removed_bytes=sum(sizes.values()))


def test_stages_that_another_object_uses_are_left_until_that_one_goes(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    of_the_other = {key for key in keys(store) if FIRST not in key and "sensor-faults" not in key}

    first = clean_up(store, "sensor-faults")

    assert first.shared_stages == len(SHARED)
    assert keys(store) == of_the_other
    assert clean_up(store, "pump-faults").shared_stages == 0
    assert keys(store) == set()


def test_an_object_whose_artifacts_were_retained_keeps_what_it_used(store: Store) -> None:
    Uses(store, "gone-but-retained").mark(Use(Stage.TRAIN, TRAINED))
    make_model(store, "sensor-faults", FIRST)

    clean_up(store, "sensor-faults")

    assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None
    assert store.read(manifest_key(Stage.MERGE, MERGED)) is None
    assert {key for key in keys(store) if key.startswith("checkpoints/")} != set()


def test_what_belongs_to_no_object_stays(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    common = {f"scores/base/{PREPARED}.json", f"sources/{PREPARED}/89ab/model.safetensors"}
    for key in common:
        store.put(key, b"{}")

    clean_up(store, "sensor-faults")

    assert keys(store) == common


def test_a_model_whose_name_only_begins_alike_stays_whole(store: Store) -> None:
    make_model(store, "sensor", FIRST)
    make_model(store, "sensor-faults", SECOND)
    before = {key for key in keys(store) if FIRST not in key and not key.endswith("/sensor") and "/sensor/" not in key}

    clean_up(store, "sensor")

    assert keys(store) == before


def test_an_object_that_made_nothing_is_cleaned_up_with_nothing_to_do(store: Store) -> None:
    assert clean_up(store, "sensor-faults") == CleanUpResult()


def test_cleaning_up_again_does_nothing_more(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    clean_up(store, "sensor-faults")
    before = keys(store)

    assert clean_up(store, "sensor-faults") == CleanUpResult()
    assert keys(store) == before


def test_files_of_attempts_that_never_ended_go_as_well(store: Store) -> None:
    uses = Uses(store, "sensor-faults")
    uses.mark(Use(Stage.MERGE, MERGED))
    store.put(f"{stage_key(Stage.MERGE, MERGED)}/dead/merged/part.safetensors", b"half a model")

    clean_up(store, "sensor-faults")

    assert keys(store) == set()


def test_parts_of_an_upload_that_was_killed_go_as_well(s3_server: S3Server, s3_prefix: str) -> None:
    client = s3_server.client()
    store = S3Store(s3_server.location(s3_prefix).uri, client)
    Uses(store, "sensor-faults").mark(Use(Stage.MERGE, MERGED))
    key = f"{s3_prefix}/{stage_key(Stage.MERGE, MERGED)}/dead/merged/part.safetensors"
    upload = client.create_multipart_upload(Bucket=s3_server.bucket, Key=key)
    client.upload_part(Bucket=s3_server.bucket, Key=key, PartNumber=1, UploadId=upload["UploadId"], Body=b"a part")

    clean_up(store, "sensor-faults")

    found = client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=s3_prefix)
    assert found.get("Uploads", []) == []


def test_a_folder_store_keeps_no_empty_folders_and_no_half_written_files(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    make_model(store, "sensor-faults", FIRST)
    half = tmp_path / "store" / stage_key(Stage.MERGE, MERGED) / "dead" / f".{'0' * 16}.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half a file")

    clean_up(store, "sensor-faults")

    assert list((tmp_path / "store" / "stages" / "merge").iterdir()) == []
    assert list((tmp_path / "store" / "checkpoints").iterdir()) == []


@dataclass
class Meeting:
    """A store in which something happens right after, or before, the first call that matches."""

    store: Store
    when: Callable[[str, tuple[Any, ...]], bool]
    happens: Callable[[], object]
    before: bool = False
    happened: bool = field(default=False)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            now = not self.happened and self.when(name, arguments)
            self.happened |= now
            if now and self.before:
                self.happens()
            result = method(*arguments, **options)
            if isinstance(result, Iterator):
                result = iter(list(result))  # what a listing says, it says now
            if now and not self.before:
                self.happens()
            return result

        return call


def deletes(key: str) -> Callable[[str, tuple[Any, ...]], bool]:
    return lambda name, arguments: name == "delete" and arguments == (key,)


def test_a_stage_that_another_object_saw_before_it_was_taken_away_is_given_back(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    manifest = store.read(manifest_key(Stage.TRAIN, TRAINED))
    files = {found.key for found in store.list(stage_key(Stage.TRAIN, TRAINED))}

    def begin() -> None:
        Uses(store, "newcomer").mark(Use(Stage.TRAIN, TRAINED))
        assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None

    met = Meeting(store, deletes(manifest_key(Stage.TRAIN, TRAINED)), begin, before=True)
    result = clean_up(met, "sensor-faults")

    assert met.happened
    assert result.shared_stages == 1
    after = store.read(manifest_key(Stage.TRAIN, TRAINED))
    assert manifest is not None
    assert after is not None
    assert after.data == manifest.data
    assert {found.key for found in store.list(stage_key(Stage.TRAIN, TRAINED))} == files


def test_what_another_object_makes_anew_while_files_are_removed_is_left_to_it(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    folder = stage_key(Stage.TRAIN, TRAINED)

    def begin_and_end() -> None:
        uses = Uses(store, "newcomer")
        uses.mark(Use(Stage.TRAIN, TRAINED))
        assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is None
        store.put(f"{folder}/new/adapter/weights.safetensors", b"made anew")
        store.put(manifest_key(Stage.TRAIN, TRAINED), b"{}", if_none_match=True)

    met = Meeting(store, deletes(f"{folder}/0123/adapter/config.json"), begin_and_end)
    clean_up(met, "sensor-faults")

    assert met.happened
    left = {found.key for found in store.list(folder)}
    assert left == {f"{folder}/new/adapter/weights.safetensors", f"{folder}/manifest.json"}


def test_objects_that_are_cleaned_up_at_the_same_time_leave_nothing_between_them(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)

    # The other one goes from its beginning to its end just before this one looks who else uses its first stage.
    looks = Meeting(store, deletes(pointer_key("sensor-faults")), partial(clean_up, store, "pump-faults"))
    clean_up(looks, "sensor-faults")

    assert looks.happened
    assert keys(store) == set()


def test_pointer_manifests_and_marks_go_in_the_order_in_which_nobody_is_led_astray(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    deleted: list[str] = []

    def watch(name: str, arguments: tuple[Any, ...]) -> bool:
        deleted.extend(arguments if name == "delete" else ())
        return False

    clean_up(Meeting(store, watch, lambda: None), "sensor-faults")

    pointer, *rest = deleted
    assert pointer == pointer_key("sensor-faults")
    first_of_stages = [key.split("/")[1] for key in rest if key.endswith("manifest.json") and key.startswith("stages/")]
    assert first_of_stages == ["publish", "merge", "train", "prepare"]
    for stage, digest in SHARED:
        of_stage = [key for key in rest if f"/{digest}/" in key]
        assert of_stage[0] == manifest_key(stage, digest)
        assert of_stage[-1] == use_key(stage, digest, "sensor-faults")


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Mortal:
    """A store whose user is killed before, or after, a number of writes."""

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
            clean_up(Mortal(store, writes, after), "sensor-faults")
        except Killed:
            for stage, digest in SHARED:
                assert store.read(manifest_key(stage, digest)) is not None, f"killed at write {writes}"
            clean_up(store, "sensor-faults")
        else:
            break
        assert keys(store) == expected, f"killed at write {writes}"
    assert writes > 15


def test_a_stage_that_is_run_again_is_in_use_again_after_a_clean_up_that_was_given_up(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    Uses(store, "sensor-faults").leave(Use(Stage.TRAIN, TRAINED))
    Uses(store, "sensor-faults").mark(Use(Stage.TRAIN, TRAINED))

    clean_up(store, "pump-faults")

    assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None


def test_keys_that_are_no_marks_are_passed_over(store: Store) -> None:
    for key in ("uses/train/short/sensor-faults", f"uses/unknown/{TRAINED}/sensor-faults"):
        store.put(key, b"{}")

    assert clean_up(store, "sensor-faults") == CleanUpResult()
    assert len(keys(store)) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "A", "a/", "-a"])
def test_a_request_for_what_is_no_name_of_an_object_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        CleanUpRequest(namespace="team-a", name=name, store=StoreLocation(uri="s3://bucket/team-a"))


@dataclass
class CleanUpRuns:
    """Processes that clean up, as their Job's container does."""

    folder: Path
    location: StoreLocation
    credentials_folder: Path | None = None

    def start(self, request: str | None = None) -> "subprocess.Popen[bytes]":
        asked = CleanUpRequest(namespace="team-a", name="sensor-faults", store=self.location)
        environment = {
            "EDGETUNE_REQUEST": asked.encode() if request is None else request,
            "EDGETUNE_WORK_DIR": str(self.folder),
            "EDGETUNE_TERMINATION_LOG": str(self.log),
            "PYTHONWARNINGS": "error",
        }
        if self.credentials_folder is not None:
            environment["EDGETUNE_CREDENTIALS_DIR"] = str(self.credentials_folder)
        self.log.unlink(missing_ok=True)
        return subprocess.Popen([sys.executable, "-m", "edgetune_jobs", "clean-up"], env=environment)

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    @property
    def result(self) -> CleanUpResult:
        return CleanUpResult.decode(self.log.read_text())


@pytest.fixture
def runs(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> CleanUpRuns:
    """Clean-ups in a bucket behind the proxy."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(s3_server.admin.secret_access_key)
    return CleanUpRuns(tmp_path, s3_server.location(s3_prefix, s3_proxy.endpoint), secret)


@pytest.fixture
def bucket(s3_server: S3Server, runs: CleanUpRuns) -> Store:
    """The store of `runs`, past the proxy."""
    return S3Store(runs.location.uri, s3_server.client())


def test_the_process_says_what_it_removed_in_its_termination_message(runs: CleanUpRuns, bucket: Store) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    make_model(bucket, "pump-faults", SECOND)

    assert runs.start().wait(60) == 0

    assert json.loads(runs.log.read_text()) == {
        "removedObjects": 5,
        "removedBytes": runs.result.removed_bytes,
        "sharedStages": 3,
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_between_two_deletions_is_completed_by_the_next(
    runs: CleanUpRuns, bucket: Store, s3_proxy: FaultProxy, number: signal.Signals
) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    started: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        started[0].send_signal(number)

    s3_proxy.faults.append(Fault("DELETE", "/stages/", times=1, after=3, after_forwarding=kill))
    started.append(runs.start())
    assert started[0].wait(60) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert keys(bucket) != set()
    assert runs.start().wait(60) == 0

    assert keys(bucket) == set()


def test_a_store_that_refuses_ends_the_process_with_the_reason(
    runs: CleanUpRuns, bucket: Store, s3_proxy: FaultProxy
) -> None:
    make_model(bucket, "sensor-faults", FIRST)
    s3_proxy.faults.append(Fault("DELETE", "/models/", status=403))

    assert runs.start().wait(60) == 11

    failure = runs.result.failure
    assert failure is not None
    assert failure.reason == "AccessDenied"
    assert f"lack s3:DeleteObject on {runs.location.uri}/{pointer_key('sensor-faults')}" in failure.message


def test_a_request_that_cannot_be_read_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    runs = CleanUpRuns(tmp_path, StoreLocation(uri=(tmp_path / "store").as_uri()))

    assert runs.start('{"name": ""}').wait(60) == 10

    failure = runs.result.failure
    assert failure is not None
    assert failure.message.startswith("EDGETUNE_REQUEST is not a request that this image understands: namespace: ")


def test_a_mark_is_where_the_layout_says(store: Store) -> None:
    Uses(store, "sensor-faults").mark(Use(Stage.TRAIN, TRAINED))

    assert store.read(f"uses/train/{TRAINED}/sensor-faults") is not None
    assert use_key(Stage.TRAIN, TRAINED, "sensor-faults") == f"uses/train/{TRAINED}/sensor-faults"


def stage_runs(folder: Path, name: str) -> StageRuns:
    """A run over inputs and a store that all runs of the folder share."""
    for path, content in (("base/config.json", "{}"), ("base/model.safetensors", "weights"), ("train.jsonl", "{}\n")):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)
    parameters = {
        "baseModel": {"uri": (folder / "base").as_uri()},
        "dataset": {"train": {"uri": (folder / "train.jsonl").as_uri()}},
    }
    own = folder / name
    own.mkdir()
    return StageRuns(
        own, StoreLocation(uri=(folder / "store").as_uri()), Parameters.model_validate(parameters), name=name
    )


def test_stages_mark_what_they_use_also_what_was_done_before_by_another_object(tmp_path: Path) -> None:
    first, second = stage_runs(tmp_path, "first"), stage_runs(tmp_path, "second")
    store = LocalFolderStore(first.store.uri)
    first.run_up_to(Stage.TRAIN)
    after_first = [use.stage for use in Uses(store, "first").own()]

    prepare = second.run(Stage.PREPARE)
    assert [done.stage for done in prepare.result.done] == [Stage.TRAIN]
    clean_up(store, "first")
    train = second.run(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert after_first == list(Stage)
    assert train.exit_code == 0, train.stderr
    assert train.result.cached
    assert {key.rpartition("/")[2] for key in keys(store) if key.startswith("uses/")} == {"second"}
    assert clean_up(store, "second").shared_stages == 0
    assert keys(store) == set()


def test_a_stage_of_a_later_generation_marks_what_it_makes(tmp_path: Path) -> None:
    runs = stage_runs(tmp_path, "first")
    store = LocalFolderStore(runs.store.uri)
    runs.run_up_to(Stage.TRAIN)
    runs.parameters = runs.parameters.model_copy(update={"lora": runs.parameters.lora.model_copy(update={"rank": 8})})
    assert runs.run(Stage.TRAIN).exit_code == 0

    uses = [use for use in Uses(store, "first").own() if use.stage is Stage.TRAIN]

    assert len(uses) == 2
    clean_up(store, "first")
    assert keys(store) == set()
