"""The folders of the test cluster, and its lock."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster import __main__ as command
from cluster.choice import default_run_folder
from cluster.folders import CACHE_VARIABLE, REPOSITORY, RunFolder, cache_folder
from cluster.lifecycle import Cluster
from cluster.lock import Busy, exclusive

HOLD = """
import sys
from cluster.lock import exclusive
with exclusive(wait=True, report=lambda line: print(line, flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_all_clones_of_a_user_share_one_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgetune"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgetune"

    monkeypatch.setenv(CACHE_VARIABLE, "/given")
    assert cache_folder() == Path("/given")
    folders = [default_run_folder(cluster_type).path for cluster_type in ("node", "kind")]
    assert folders == [Path("/given/cluster"), Path("/given/kind")]


def test_a_cluster_in_another_folder_has_other_names(tmp_path: Path) -> None:
    assert RunFolder(Path("/one")).name != RunFolder(Path("/two")).name
    with pytest.raises(ValueError, match="too long for the sockets"):
        RunFolder(tmp_path / ("x" * 80))


def test_a_second_process_waits_for_the_cluster_and_names_the_process_that_holds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    command = [sys.executable, "-c", HOLD]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY / "tests", text=True, **piped) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "held\n"

        with pytest.raises(Busy) as refused, exclusive(wait=False, report=print):
            pass
        assert str(refused.value) == (
            f"the cluster is in use by process {first.pid} of {REPOSITORY}: wait until it has ended, or stop it"
        )

        with subprocess.Popen(command, cwd=REPOSITORY / "tests", text=True, **piped) as second:  # type: ignore[call-overload]
            waiting = f"waiting for process {first.pid} of {REPOSITORY}, which uses the cluster of this machine\n"
            assert second.stdout.readline() == waiting
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.kill()


def test_tests_do_not_stop_a_cluster_that_make_cluster_left_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    for answer in ("ensure_possible", "is_up", "up", "down"):
        monkeypatch.setattr(Cluster, answer, lambda *_, **__: True)
    run = default_run_folder("node")
    run.path.mkdir()
    run.left_up_by.write_text("/home/me/edgetune", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["cluster", "run", "touch", str(cache / "ran")])

    assert command.main() == 1

    message = "`make cluster` in /home/me/edgetune left a cluster running; stop it with `make cluster-down`"
    assert message in capsys.readouterr().err
    assert not (cache / "ran").exists()
