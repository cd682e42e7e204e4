"""`python -m cluster`: starts and stops a Kubernetes with one real node on this machine."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.choice import TYPES, AnyCluster, default_run_folder, variables_of
from cluster.controlplane import start_control_plane, stop_control_plane
from cluster.folders import REPOSITORY, RunFolder
from cluster.lock import exclusive
from cluster.requirements import NotPossibleHere

# The usual exit code of test programs for "skipped".
_NOT_POSSIBLE = 77


def main() -> int:
    """Run one command and return its exit code."""
    given = _parse()
    if given.command == "control-plane":
        return _control_plane(given)
    run = RunFolder(given.folder.absolute()) if given.folder else default_run_folder(given.type)
    cluster = TYPES[given.type](run, report=_report)
    try:
        cluster.ensure_possible()
    except NotPossibleHere as reason:
        print(f"cluster: cannot run a node here: {reason}", file=sys.stderr)
        return _NOT_POSSIBLE
    try:
        return _perform(cluster, given)
    except (RuntimeError, TimeoutError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _perform(cluster: AnyCluster, given: argparse.Namespace) -> int:
    if given.command == "exec":
        return _execute(cluster, given.arguments)
    with exclusive(wait=given.command != "down", report=_report):
        match given.command:
            case "build":
                cluster.build()
            case "up":
                _up(cluster)
            case "down":
                cluster.down(keep_images=not given.purge)
            case "run":
                return _run(cluster, given.arguments)
    return 0


def _up(cluster: AnyCluster) -> None:
    if cluster.is_up():
        _report("The cluster is already running; updating its images.")
        cluster.reload_images()
    else:
        cluster.up()
    cluster.run.left_up_by.write_text(str(REPOSITORY), encoding="utf-8")
    print(f"kubectl: {cluster.run.programs / 'kubectl'}")


def _control_plane(given: argparse.Namespace) -> int:
    """Start or stop a control plane without a node, which needs neither root nor its own network."""
    folder = given.folder.absolute() if given.folder else REPOSITORY / ".edgetune" / "control-plane"
    stop_control_plane(folder)
    if folder.exists():
        shutil.rmtree(folder)
    if given.state == "up":
        print(f"export KUBECONFIG={start_control_plane(folder, kwok=given.kwok).kubeconfig()}")
    return 0


def _execute(cluster: AnyCluster, arguments: list[str]) -> int:
    if not cluster.is_up():
        print("cluster: not running; start it with `python -m cluster up`", file=sys.stderr)
        return 1
    environment = {**os.environ, **variables_of(cluster)}
    return subprocess.run([*cluster.prefix, *arguments], env=environment, check=False).returncode


def _run(cluster: AnyCluster, arguments: list[str]) -> int:
    if cluster.is_up() and cluster.run.left_up_by.exists():
        repository = cluster.run.left_up_by.read_text(encoding="utf-8")
        raise RuntimeError(f"`make cluster` in {repository} left a cluster running; stop it with `make cluster-down`")
    cluster.up()
    try:
        return _execute(cluster, arguments)
    finally:
        cluster.down(keep_logs=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, help="the cluster's folder (default: `cluster` in the cache folder)")
    parser.add_argument("--type", choices=TYPES, default="node", help="this machine as a node (default), or kind")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build programs and images into the cache")
    commands.add_parser("up", help="build what is missing and start the cluster; if it is running, load changed images")
    down = commands.add_parser("down", help="stop the cluster and remove everything but the images in the cache")
    down.add_argument("--purge", action="store_true", help="also remove the cluster's images")
    light = commands.add_parser("control-plane", help="only the control plane, on loopback, as any user")
    light.add_argument("state", choices=("up", "down"))
    light.add_argument("--kwok", action="store_true", help="with a scheduler, and kwok to simulate kubelets")
    for name, text in (
        ("exec", "run a command in the cluster's network, with its kubeconfig"),
        ("run", "start the cluster, run a command in its network, and stop the cluster"),
    ):
        commands.add_parser(name, help=text).add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
