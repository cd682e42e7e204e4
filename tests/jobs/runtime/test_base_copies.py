"""Copies of base models in the store: complete or absent, despite concurrent copies, kills and network errors."""

import io
import json
from pathlib import Path

import pytest

from edgetune_contract.request import Request, Resolved
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.models.trial.process import shared_trial
from edgetune_jobs.runtime.base_copies import fetch_mirror, mirror_model
from edgetune_jobs.runtime.inputs import InputGatherer
from edgetune_jobs.runtime.progress import LineProgress
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.sources.model_cache import ModelCache
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from edgetune_jobs.store.store import Store
from edgetune_jobs.tensors.text_model import text_model
from support.fault_proxy import Fault, FaultProxy
from support.multimodal import make_multimodal, read_config
from support.versitygw import S3Server

URI = "hf://acme/tiny"
PROGRESS = LineProgress(Stage.PREPARE, io.StringIO())


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    """A model's files, in a folder instead of the hub."""
    (tmp_path / "hub").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hub" / name).write_text(name)
    return FolderSource((tmp_path / "hub").as_uri(), "spec.baseModel", SourceKind.MODEL)


def mirrored(store: Store, source: FolderSource, target: Path) -> list[str]:
    """Names of the files that later stages get, each verified."""
    return sorted(path.name for path in fetch_mirror(store, source.digest, URI, target).iterdir())


def test_a_copy_whose_manifest_was_written_without_an_answer_keeps_its_files(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, source: FolderSource, tmp_path: Path
) -> None:
    store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client(s3_proxy.endpoint))
    s3_proxy.faults.append(Fault("PUT", "manifest.json", times=1, loses_answer=True))

    mirror_model(store, source, PROGRESS)

    assert mirrored(store, source, tmp_path / "fetched") == ["config.json", "model.safetensors"]


def test_a_copy_that_loses_the_race_keeps_the_first_one_and_removes_its_own_files(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, source: FolderSource, tmp_path: Path
) -> None:
    direct = S3Store(s3_server.location(s3_prefix).uri, s3_server.client())
    behind_proxy = S3Store(direct.uri, s3_server.client(s3_proxy.endpoint))
    first = Fault("PUT", "manifest.json", times=1, before_forwarding=lambda: mirror_model(direct, source, PROGRESS))
    s3_proxy.faults.append(first)

    mirror_model(behind_proxy, source, PROGRESS)

    assert mirrored(direct, source, tmp_path / "fetched") == ["config.json", "model.safetensors"]
    assert len({found.key.split("/")[2] for found in direct.list("sources")} - {"manifest.json"}) == 1


def test_files_of_killed_attempts_are_removed_by_the_copy_that_completes(source: FolderSource, tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    store.put(f"sources/{source.digest}/0123456789abcdef/model.safetensors", b"half")

    mirror_model(store, source, PROGRESS)

    assert not list(store.list(f"sources/{source.digest}/0123456789abcdef"))
    assert len(list(store.list("sources"))) == 3


def test_unused_weights_are_not_copied(tmp_path: Path) -> None:
    """Mistral's repositories have all weights twice: as shards, and in a layout of their own."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    used = {
        "config.json": "{}",
        "model-1.safetensors": "one",
        "model-2.safetensors": "two",
        "model.safetensors.index.json": json.dumps(index),
        "tokenizer.model": "pieces",
    }
    (tmp_path / "hub").mkdir()
    for name, content in {**used, "consolidated.safetensors": "one and two"}.items():
        (tmp_path / "hub" / name).write_text(content)
    source = FolderSource((tmp_path / "hub").as_uri(), "spec.baseModel", SourceKind.MODEL)
    store = LocalFolderStore((tmp_path / "store").as_uri())

    mirror_model(store, source, PROGRESS)

    assert mirrored(store, source, tmp_path / "fetched") == sorted(used)


def test_a_text_part_is_copied_as_a_plain_model_under_the_digest_of_the_whole_model(
    store: Store, tmp_path: Path
) -> None:
    whole = make_multimodal(tmp_path / "whole", "llava")
    source = FolderSource(whole.as_uri(), "spec.baseModel", SourceKind.MODEL)

    mirror_model(store, source, PROGRESS, lambda each: text_model(each, shared_trial(), tmp_path / "text"))

    copied = fetch_mirror(store, source.digest, URI, tmp_path / "fetched")
    assert read_config(copied)["architectures"] == ["LlamaForCausalLM"]
    expected = text_model(source, shared_trial(), tmp_path / "expected").fetch(["model.safetensors"])
    assert (copied / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (copied / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


def test_a_copy_is_read_through_the_cache_of_base_models(
    s3_server: S3Server, s3_prefix: str, source: FolderSource, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    cache = ModelCache(tmp_path / "cache", 10**6)
    location = s3_server.location(s3_prefix)
    parameters = Parameters.model_validate(
        {"baseModel": {"uri": URI, "revision": "a" * 40}, "dataset": {"train": {"uri": "s3://bucket/train.jsonl"}}}
    )
    request = Request(
        namespace="team-a", name="x", stage=Stage.MERGE, digest="d" * 64, store=location, parameters=parameters
    )
    resolved = Resolved(base=source.digest, train="b" * 64)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(s3_server.admin.secret_access_key)
    access = StorageAccess(location, secret)
    store = access.open_store()
    mirror_model(store, source, PROGRESS)

    def read(name: str) -> tuple[bytes, bytes]:
        """The weights by range, and a companion file."""
        gatherer = InputGatherer(request, resolved, access, store, PROGRESS, tmp_path / name, cache)
        model = gatherer.models()["base"]
        buffer = bytearray(100)
        arrived = model.read_into("model.safetensors", 0, memoryview(buffer))
        model.check()
        return bytes(buffer[:arrived]), (model.fetch(["config.json"]) / "config.json").read_bytes()

    first, before = read("first"), access.traffic.received
    again, received = read("again"), access.traffic.received - before

    assert first == again == (b"model.safetensors", b"config.json")
    assert cache.warnings == ()
    # The manifest of the copy is read again, and nothing else.
    manifest = store.read(f"sources/{source.digest}/manifest.json")
    assert manifest is not None
    assert received == len(manifest.data)
