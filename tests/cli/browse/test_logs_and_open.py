"""`edgetune logs` and `edgetune open` on a work folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.work_folder import WorkFolder

_LIMIT_SECONDS = 30


def test_the_log_is_that_of_the_stage_that_started_last_or_of_the_named_one(work_folder: WorkFolder) -> None:
    assert work_folder.edgetune("logs").stdout == "log of publish\n"
    assert work_folder.edgetune("logs", "pumps", "--stage", "train").stdout == "log of train\n"


def test_a_stage_that_has_not_run_has_no_log(work_folder: WorkFolder) -> None:
    (work_folder.path / "logs" / "team-a" / "pumps-merge.log").unlink()

    done = work_folder.edgetune("logs", "--stage", "merge")

    assert (done.exit_code, done.stderr.strip()) == (2, "team-a/pumps: stage merge has not run on this machine")


def test_new_lines_are_followed_until_the_run_ends(work_folder: WorkFolder) -> None:
    document = work_folder.document()
    finished_at = document["status"].pop("finishedAt")
    work_folder.write(document)
    lock = work_folder.path / "objects" / "team-a" / "pumps.lock"
    lock.write_text(str(os.getpid()))  # this process is the run
    log = work_folder.path / "logs" / "team-a" / "pumps-publish.log"
    command = [sys.executable, "-m", "edgetune_cli", "logs", "--follow", "--workdir", str(work_folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "log of publish\n"
        with log.open("a") as file:
            file.write("a new line\nhalf a li")
        assert process.stdout.readline() == "a new line\n"
        with log.open("a") as file:
            file.write("ne\n")
        work_folder.write({**document, "status": {**document["status"], "finishedAt": finished_at}})
        assert process.stdout.read() == "half a line\n"
        assert process.wait(_LIMIT_SECONDS) == 0


def test_a_run_that_was_killed_ends_the_log(work_folder: WorkFolder) -> None:
    document = work_folder.document()
    del document["status"]["finishedAt"]
    work_folder.write(document)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    (work_folder.path / "objects" / "team-a" / "pumps.lock").write_text(str(ended.pid))

    began = time.monotonic()
    done = work_folder.edgetune("logs", "--follow")

    assert (done.exit_code, done.stdout) == (0, "log of publish\n")
    assert time.monotonic() - began < _LIMIT_SECONDS


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ((), "/edge-bnb-int8"),
        (("--what", "adapter"), "/adapter"),
        (("--what", "evaluation"), "/evaluation"),
        (("-w", "log"), "/logs/team-a/pumps-publish.log"),
    ],
)
def test_what_a_run_left_is_opened_by_its_path(work_folder: WorkFolder, options: tuple[str, ...], end: str) -> None:
    done = work_folder.edgetune("open", *options)

    path = Path(done.stdout.strip())
    assert done.exit_code == 0, done.stderr
    assert str(path).endswith(end)
    assert path.exists()


def test_the_candidate_that_was_chosen_is_opened(work_folder: WorkFolder) -> None:
    document = work_folder.document()
    status = document["status"]
    (edge,) = (each for each in status["artifacts"] if each["name"] == "edge-bnb-int8")
    larger = {**edge, "name": "edge-gguf-bf16", "uri": edge["uri"].replace("edge-bnb-int8", "edge-gguf-bf16")}
    status["artifacts"] = [larger, *status["artifacts"]]
    status["resolved"] = {"base": "a" * 64, "train": "b" * 64, "formats": ["GGUF-BF16", "BitsAndBytesInt8"]}
    status["candidates"] = [
        {"format": "GGUF-BF16", "bytes": 2, "limits": ["gates.maxEdgeBytes"]},
        {"format": "BitsAndBytesInt8", "bytes": 1, "chosen": True},
    ]
    work_folder.write(document)

    assert work_folder.edgetune("open").stdout.strip().endswith("/edge-bnb-int8")


def test_a_folder_in_which_nothing_was_run_is_named(tmp_path: Path) -> None:
    done = WorkFolder(tmp_path / "new").edgetune("open")

    assert done.exit_code == 2
    assert f"nothing was run in {tmp_path / 'new'}: run an object first" in done.stderr


def test_a_desktop_program_opens_the_folder_of_the_model(work_folder: WorkFolder, tmp_path: Path) -> None:
    """On a terminal; `script` makes one."""
    opener = tmp_path / "bin" / "xdg-open"
    opener.parent.mkdir()
    opener.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    opener.chmod(0o755)
    command = f"{sys.executable} -m edgetune_cli open --workdir {work_folder.path}"
    environment = {**os.environ, "PATH": f"{opener.parent}:{os.environ['PATH']}"}

    subprocess.run(["script", "-qec", command, "/dev/null"], env=environment, check=True, capture_output=True)

    opened = tmp_path / "opened"
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not (opened.exists() and opened.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert opened.read_text().strip().endswith("/edge-bnb-int8")


def test_what_a_run_did_not_make_is_refused_with_what_it_made(work_folder: WorkFolder) -> None:
    document = work_folder.document()
    document["status"]["artifacts"] = [each for each in document["status"]["artifacts"] if each["name"] == "adapter"]
    work_folder.write(document)

    done = work_folder.edgetune("open", "--what", "merged")

    assert (done.exit_code, done.stderr.strip()) == (2, "team-a/pumps has no merged: its last run made adapter")


def test_an_artifact_in_a_bucket_is_named_with_the_way_to_copy_it(work_folder: WorkFolder) -> None:
    document = work_folder.document()
    for artifact in document["status"]["artifacts"]:
        artifact["uri"] = f"s3://bucket/team-a/stages/{artifact['name']}"
    pointer = "s3://bucket/team-a/models/pumps/latest.json"
    document["status"]["publication"] = {"published": True, "version": "8" * 64, "pointer": pointer}
    work_folder.write(document)

    done = work_folder.edgetune("open")

    assert done.exit_code == 2
    assert done.stderr.strip().endswith(f"is in a bucket: copy the published model with `edgetune pull {pointer} DIR`")
