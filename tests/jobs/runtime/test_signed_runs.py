"""Signed runs over a local folder: publish signs, prepare knows whether it has, and nothing is published without."""

from pathlib import Path

import pytest

from edgetune_contract.digest import pointer_key, signatures_key
from edgetune_contract.request import Request
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.publishing.verification import verify
from support.local_runs import failed, keys, new_runs, store_of, version_at_pointer
from support.signing import KeyFiles, make_key
from support.stage_runs import Ended, StageRuns

NAME = "sensor-faults"
REVISION = "main@sha1:" + "7" * 40


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    return make_key(tmp_path / "key")


@pytest.fixture
def evaluated(tmp_path: Path) -> StageRuns:
    """A run of which only publish is left."""
    runs = new_runs(tmp_path)
    runs.run_up_to(Stage.EVALUATE)
    return runs


def request_to_sign(runs: StageRuns, stage: Stage) -> Request:
    revision = REVISION if stage is Stage.PUBLISH else None
    return runs.request(stage, sign=True, source_revision=revision)


def signed_run(runs: StageRuns, stage: Stage, key: Path | None) -> Ended:
    variables = {} if key is None else {"EDGETUNE_SIGNING_KEY": str(key)}
    return runs.start(stage, request=request_to_sign(runs, stage).encode(), **variables).wait()


def done_stages(runs: StageRuns) -> list[Stage]:
    """The later stages that prepare finds done when the version is to be signed."""
    return [result.stage for result in signed_run(runs, Stage.PREPARE, None).result.done]


def test_publish_signs_the_version_and_prepare_finds_it_done(evaluated: StageRuns, key: KeyFiles) -> None:
    done = signed_run(evaluated, Stage.PUBLISH, key.private)

    assert done.exit_code == 0, done.stderr
    found = verify(store_of(evaluated), ModelAddress(evaluated.store.uri, NAME, None), key.keys)
    assert found.signature is not None
    assert (found.signature.state, found.signature.source_revision) == ("valid", REVISION)
    folder = signatures_key(NAME, version_at_pointer(evaluated))
    names = {each.removeprefix(f"{folder}/") for each in keys(evaluated, folder)}
    artifacts = {"prepared", "adapter", "merged", "edge-bnb-int8", "evaluation"}
    assert names == {"provenance.sigstore.json", *(f"{artifact}.sig" for artifact in artifacts)}
    assert done_stages(evaluated)[-1] is Stage.PUBLISH


def test_a_version_that_was_published_before_there_was_a_key_is_signed_by_a_retry(
    evaluated: StageRuns, key: KeyFiles
) -> None:
    assert evaluated.run(Stage.PUBLISH).exit_code == 0
    version = version_at_pointer(evaluated)
    assert done_stages(evaluated)[-1] is Stage.EVALUATE

    again = signed_run(evaluated, Stage.PUBLISH, key.private)

    assert again.result.cached
    assert done_stages(evaluated)[-1] is Stage.PUBLISH
    found = verify(store_of(evaluated), ModelAddress(evaluated.store.uri, NAME, version), key.keys)
    assert found.signature is not None
    assert found.signature.state == "valid"


def test_nothing_is_published_without_the_key(evaluated: StageRuns, tmp_path: Path) -> None:
    message = failed(signed_run(evaluated, Stage.PUBLISH, None), 10, "InvalidInput")
    assert message.startswith("EDGETUNE_SIGNING_KEY is not set, and the request is to sign")

    message = failed(signed_run(evaluated, Stage.PUBLISH, tmp_path / "train.jsonl"), 10, "InvalidInput")
    assert "is not a private key in PEM; make one with `openssl ecparam" in message

    assert store_of(evaluated).read(pointer_key(NAME)) is None
