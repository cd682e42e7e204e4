"""`edgetune pull` into a folder: versions, rollbacks, power cuts, full disks and tampered stores."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_cli.device.folder import DeviceFolder
from edgetune_contract.digest import pointer_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.files import fingerprint
from support.devices import WEIGHTS, address, is_version, point_to, publish_and_pull, pull, refused
from support.published import MODEL, PublishedModel


def test_the_newest_version_becomes_current_and_the_one_before_it_stays(model: PublishedModel, device: Path) -> None:
    versions = []
    for _ in range(3):
        versions.append(model.publish())
        said = pull(address(model), device)
        assert f"current is version {versions[-1].version[:12]}, edge-bnb-int8" in said
    assert is_version(device, versions[2])
    assert is_version(device, versions[1], "previous")
    assert len([path for path in (device / "versions").iterdir() if path.is_dir()]) == 2
    assert "up to date" in pull(address(model), device)


def test_only_files_that_are_not_there_are_downloaded(model: PublishedModel, device: Path) -> None:
    first, second = model.publish(), model.publish()
    shared = {each.sha256 for each in first.edge.files} & {each.sha256 for each in second.edge.files}
    assert shared
    pull(f"{model.store.uri}/models/{MODEL}/versions/{first.version}.json", device)
    new = sum(each.bytes for each in second.edge.files if each.sha256 not in shared)

    assert f": {new} B of " in pull(address(model), device)
    assert is_version(device, second)


def test_a_damaged_file_of_the_device_is_not_reused(model: PublishedModel, device: Path) -> None:
    model.publish()
    pull(address(model), device)
    for path in (device / "current").iterdir():
        path.chmod(0o600)
        path.write_bytes(b"damaged")
    second = model.publish()
    size = sum(each.bytes for each in second.edge.files)

    assert f"{size} B of {size} B" in pull(address(model), device)
    assert is_version(device, second)


def test_a_rollback_needs_no_network_and_holds_until_another_version_or_another_rollback(
    model: PublishedModel, device: Path
) -> None:
    first, second = (publish_and_pull(model, device) for _ in range(2))
    uri = address(model)

    pull("--rollback", device)
    assert is_version(device, first)
    assert "a rollback left version" in pull(uri, device)
    assert is_version(device, first)
    pull("--rollback", device)
    assert is_version(device, second)
    assert "up to date" in pull(uri, device)

    pull("--rollback", device)
    third = publish_and_pull(model, device)
    assert is_version(device, third)
    assert is_version(device, first, "previous")


def test_without_a_previous_version_there_is_no_rollback(model: PublishedModel, device: Path) -> None:
    publish_and_pull(model, device)
    assert "no previous version" in refused("--rollback", device)


def test_the_command_runs_once_for_each_change_and_again_if_it_failed(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    document, log = model.publish(), tmp_path / "log"
    uri, command = address(model), f'echo "$EDGETUNE_VERSION $EDGETUNE_MODEL" >> {log}'

    said = refused(uri, device, "--on-change", f"{command}; exit 3")
    assert f"current is version {document.version[:12]}" in said
    assert "ended with exit code 3" in said
    for _ in range(2):
        pull(uri, device, "--on-change", command)

    assert log.read_text().splitlines() == [f"{document.version} {(device / 'current').resolve()}"] * 2


def test_the_command_may_roll_back(model: PublishedModel, device: Path) -> None:
    first = publish_and_pull(model, device)
    second = model.publish()
    undo = shlex.join([sys.executable, "-m", "edgetune_cli", "pull", "--rollback", str(device)])

    pull(address(model), device, "--on-change", undo)

    assert is_version(device, first)
    assert is_version(device, second, "previous")


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "list of files": (lambda d: d["edge"]["files"][0].update(bytes=1), "list of files of edge-bnb-int8 was changed"),
    "refused version": (lambda d: d.update(published=False, refusals=["too low"]), "was refused, and is not for"),
    "unknown field": (lambda d: d.update(newField=1), "unknown field 'newField': update edgetune on this device"),
    "no document": (lambda d: d.clear(), "is damaged: model: Field required"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_pointer_changes_nothing(what: str, model: PublishedModel, device: Path, tmp_path: Path) -> None:
    change, message = TAMPERED[what]
    first = publish_and_pull(model, device)
    model.publish()
    pointer = tmp_path / "store" / pointer_key(MODEL)
    document = json.loads(pointer.read_text())
    change(document)
    pointer.write_text(json.dumps(document))

    assert message in refused(address(model), device)
    assert is_version(device, first)


@pytest.mark.parametrize("path", ["../../../evil", "/evil", "a//b", "./x"])
def test_file_names_that_leave_the_folder_are_refused(
    path: str, model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    document = model.publish()
    first, *others = document.edge.files
    point_to(document, [first.model_copy(update={"path": path}), *others], tmp_path)

    assert f"has the file name {path!r}, which leaves its folder" in refused(address(model), device)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(("content", "problem"), [(b"x", "fewer"), (b"x" * 10_000, "or more"), (None, "SHA-256")])
def test_changed_bytes_are_never_used(
    content: bytes | None, problem: str, model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    first = publish_and_pull(model, device)
    second = model.publish()
    file = tmp_path / "store" / second.edge.key / WEIGHTS
    file.write_bytes(bytes(file.stat().st_size) if content is None else content)

    said = refused(address(model), device)

    assert "damaged" in said or "the connection was cut" in said
    assert problem in said or problem == "fewer"
    assert is_version(device, first)


def test_a_full_disk_leaves_the_current_version_and_says_how_much_is_needed(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    first = publish_and_pull(model, device)
    file_system = tmp_path / "small"
    file_system.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", file_system], check=False).returncode:
        pytest.skip("this user may not mount a file system of 64 kB")
    try:
        pull(f"{model.store.uri}/models/{MODEL}/versions/{first.version}.json", file_system / "device")
        (file_system / "other").write_bytes(bytes(20 * 2**10))
        second = model.publish()
        (tmp_path / "store" / second.edge.key / WEIGHTS).write_bytes(bytes(2**20))
        assert "is full" in refused(address(grown(model, second, tmp_path)), file_system / "device")
        assert is_version(file_system / "device", first)
        assert sum(path.stat().st_size for path in (file_system / "device/incoming").iterdir()) < 2**10
    finally:
        subprocess.run(["umount", file_system], check=True)


def grown(model: PublishedModel, document: VersionDocument, tmp_path: Path) -> PublishedModel:
    """The model, whose pointer expects weights of 1 MiB."""
    folder = tmp_path / "store" / document.edge.key
    files = [fingerprint(folder / each.path).entry(each.path) for each in document.edge.files]
    point_to(document, files, tmp_path)
    return model


def test_two_pulls_into_one_folder_do_not_meet(model: PublishedModel, device: Path) -> None:
    publish_and_pull(model, device)
    with DeviceFolder(device).locked():
        assert "another edgetune pull is using" in refused(address(model), device)


def test_a_folder_that_is_no_link_is_left_as_it_is(model: PublishedModel, device: Path) -> None:
    (device / "current").mkdir(parents=True)
    model.publish()
    assert "is not a link that edgetune pull made" in refused(address(model), device)
    assert (device / "current").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models/x", "d"], "is not the address of a model"),
        (["ftp://h/models/x/latest.json", "d"], "is not the address of a model"),
        (["d"], "give URI and DIR: 1 given"),
        (["a", "b", "--rollback"], "give DIR with --rollback: 2 given"),
        (["s3://b/models/x/latest.json", "d", "--watch", "soon"], "--watch soon: give a time such as 30s"),
        (["s3://b/models/x/latest.json", "d", "--watch", "0m"], "--watch 0m: give a time such as 30s"),
        (["s3://b/models/x/latest.json", "d", "--watch", "99999999999999d"], "give a time such as 30s"),
        (["s3://b/models/x/latest.json", ""], "DIR is empty"),
        (["d", "--rollback", "--watch", "10m"], "--rollback takes neither --watch nor --format"),
        (["http://[::1/models/x/latest.json", "d"], "is not an address: Invalid IPv6 URL"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused(*(str(tmp_path / each) if each == "d" else each for each in arguments))


def test_a_watch_takes_new_versions_survives_outages_and_ends_on_sigterm(
    model: PublishedModel, device: Path, tmp_path: Path
) -> None:
    first, pipe = model.publish(), tmp_path / "changes"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "edgetune_cli", "pull", address(model), str(device), "--watch", "1s"]
    command += ["--on-change", f"cat /proc/sys/kernel/random/uuid > {pipe}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert pipe.read_text()
            assert is_version(device, first)
            store = tmp_path / "store"
            store.rename(tmp_path / "away")
            assert "there is nothing at" in (process.stderr.readline() if process.stderr else "")
            (tmp_path / "away").rename(store)
            second = model.publish()
            assert pipe.read_text()
            assert is_version(device, second)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_a_power_cut_at_any_byte_leaves_a_whole_version_and_the_next_pull_succeeds(
    model: PublishedModel, device: Path
) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("power_cuts.py"), model.store.uri, device.parent, "50"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"50 power cuts at a byte, [3-9]\d before a change of the disk\n", done.stdout)


def test_the_command_needs_neither_torch_nor_the_operators_libraries(model: PublishedModel, device: Path) -> None:
    model.publish()
    heavy = ["torch", "transformers", "numpy", "kopf", "kubernetes", "aiohttp", "safetensors", "pyarrow", "jinja2"]
    script = f"import sys; sys.modules.update(dict.fromkeys({heavy})); from edgetune_cli.__main__ import main; main()"
    command = [sys.executable, "-c", script, "pull", address(model), str(device)]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
