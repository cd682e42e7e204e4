"""The tutorials of a cluster: every kubectl and helm command on a real API server, with the operator as a process.

There are no nodes: a thread plays the kubelet and the stages, so the scores in what is printed are simulated.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from cluster.controlplane import ControlPlane
from edgetune_contract.stages import Stage
from support.apiserver import REPOSITORY
from support.kube import Kube
from support.stage_player import OBJECT, Operator, StagePlayer
from support.tutorials import Reader, tutorial, write_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find("kubectl") is None or find("helm") is None, reason="no kubectl or helm in the cache: run `make programs`"
    ),
]

TEAM = "team-a"
VALUES = sorted((REPOSITORY / "examples" / "clusters").glob("*.yaml"))


@contextmanager
def played(player: StagePlayer, *stages: Stage) -> Iterator[None]:
    """These stages succeed one after the other, as soon as each of them runs."""
    ended: list[Stage] = []

    def play() -> None:
        for stage in stages:
            player.finish(stage)
            ended.append(stage)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    yield
    thread.join()
    assert ended == list(stages)


@pytest.fixture(scope="module")
def team(control_plane: ControlPlane, operator: Operator) -> StagePlayer:
    """The kubelet of the team's namespace, which the tutorial creates."""
    operator.ensure()
    return StagePlayer(Kube.from_kubeconfig(control_plane.kubeconfig()), TEAM)


@pytest.fixture(scope="module")
def reader(
    control_plane: ControlPlane, team: StagePlayer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reader]:
    """A reader who has followed cluster.md, in a checkout, with access to the control plane."""
    folder = tmp_path_factory.mktemp("reader")
    home = folder / "edgetune"
    home.mkdir()
    for name in ("charts", "examples"):
        (home / name).symlink_to(REPOSITORY / name)
    programs = write_programs(folder / "bin", python=sys.executable)
    variables = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "KUBECONFIG": str(control_plane.kubeconfig())}
    reader = Reader(home, variables)
    with played(team, *Stage):
        reader.follow("cluster.md")
    yield reader
    team.kube.delete(*OBJECT, TEAM, "sensor-faults")
    for namespace in (TEAM, "s3", "edgetune-system"):
        team.kube.delete("v1", "Namespace", None, namespace)


@pytest.mark.usefixtures("reader")
def test_from_a_laptop_to_a_cluster(team: StagePlayer) -> None:
    assert team.object["status"]["phase"] == "Succeeded"


def test_nightly_retraining(reader: Reader, team: StagePlayer) -> None:
    before = team.object

    with played(team, Stage.PREPARE):
        reader.follow("nightly.md")

    assert team.object["status"]["lastHandledRetry"] != before["status"].get("lastHandledRetry")


def test_what_the_cron_job_runs_requests_a_retry_with_its_own_rights(reader: Reader, team: StagePlayer) -> None:
    documents = list(yaml.safe_load_all((REPOSITORY / "examples/nightly/cron-job.yaml").read_text(encoding="utf-8")))
    for document in documents:
        team.kube.apply({**document, "metadata": {**document["metadata"], "namespace": TEAM}})
    pod = documents[-1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    token = "retrain-nightly-29187240"
    arguments = " ".join(f"'{argument.replace('$(JOB)', token)}'" for argument in container["args"])

    with played(team, Stage.PREPARE):
        code, printed = reader.run(f"kubectl {arguments} -n {TEAM} --as={_account(pod)}")
        assert code == 0, printed
        team.wait(lambda found: found["status"].get("lastHandledRetry") == token, "the retry is handled")

    assert reader.run(f"kubectl delete lft sensor-faults -n {TEAM} --as={_account(pod)}")[0] != 0


def _account(pod: Mapping[str, Any]) -> str:
    return f"system:serviceaccount:{TEAM}:{pod['serviceAccountName']}"


def test_every_file_of_values_is_in_the_tutorial() -> None:
    text = "\n".join(block.text for block in tutorial("cluster.md"))

    assert [path.name for path in VALUES if f"examples/clusters/{path.name}" not in text] == []
