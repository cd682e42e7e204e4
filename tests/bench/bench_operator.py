"""Throughput and cost of the operator with many objects, on a real control plane with a node simulated by kwok.

    python tests/bench/bench_operator.py [--objects N] [--stage-seconds S] [--json FILE]

Rates, writes and times come from the API server's audit log, memory and processor time from /proc: no figure is
reported by the operator itself. The operator runs as in the chart's Deployment, with the chart's service account.

Before it, a bare client serves as many objects on a separate but otherwise identical control plane.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_cluster import NAMESPACE, BenchCluster, running_bench_cluster
from bench.cache_need import cache_bytes
from bench.fleet import Fleet
from bench.process_figures import ProcessFigures, read_process
from bench.report import print_table, write_json
from cluster.folders import cache_folder
from edgetune_contract.stages import Stage
from support.audit import hand_off_seconds, seconds_to_first_jobs, writes

_RATE_GOAL = 43.0
_SHARE_GOAL = 0.5
_LIMIT_SECONDS = 3600
_FIRST_JOBS_LIMIT_SECONDS = 600
_REST_SECONDS = 5


@dataclass(frozen=True)
class Figure:
    """One figure of the run."""

    key: str
    """Name with the unit, for the file."""

    label: str
    value: float
    shown: str
    goal: str = ""


def main() -> None:
    """Measure, print and write."""
    options = _parse()
    figures = _measure(options)
    rows = [[figure.label, figure.shown, figure.goal] for figure in figures]
    columns = ["", "measured", "goal"]
    if options.compare:
        before = json.loads(options.compare.read_text(encoding="utf-8"))["figures"]
        columns.append("before")
        rows = [
            [*row, f"{before[figure.key]:.4g}" if figure.key in before else "-"]
            for row, figure in zip(rows, figures, strict=True)
        ]
    print_table(
        f"The operator with {options.objects:,} objects at once, stages of {options.stage_seconds:g} s",
        columns,
        rows,
        [f"All figures: {options.json}"],
    )
    taken = {"objects": options.objects, "stageSeconds": options.stage_seconds, "idleSeconds": options.idle_seconds}
    write_json(options.json, taken, {figure.key: figure.value for figure in figures})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000, help="LoraFineTunes to create at once (1000)")
    parser.add_argument("--stage-seconds", type=float, default=60.0, help="run time of a stage's Pod (60, ±50 %%)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="duration of the idle measurement (60)")
    parser.add_argument("--profile", type=Path, help="profile the operator with cProfile into this file")
    parser.add_argument("--compare", type=Path, help="figures of an earlier run to print next to these")
    parser.add_argument(
        "--json", type=Path, default=cache_folder() / "bench" / "operator.json", help="file for the figures"
    )
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> list[Figure]:
    _say(f"a bare client with {options.objects} objects")
    with running_bench_cluster(options.stage_seconds) as cluster:
        bare = options.objects / _bare_seconds(cluster, options.objects)
    _say(f"the operator with {options.objects} objects")
    with running_bench_cluster(options.stage_seconds) as cluster:
        return OperatorRun(cluster, options).measure(bare)


def _bare_seconds(cluster: BenchCluster, count: int) -> float:
    fleet = Fleet(cluster.plane.kubeconfig(), NAMESPACE, count)
    with cluster.running_bare_client():
        cluster.wait_for_watch(cluster.operator_user)
        fleet.create()
        cluster.wait_for_stage(Stage.PREPARE, count, _FIRST_JOBS_LIMIT_SECONDS)
    return seconds_to_first_jobs(cluster.audit.requests, cluster.operator_user)


class OperatorRun:
    """One operator and its objects, from their creation until they are finished."""

    def __init__(self, cluster: BenchCluster, options: argparse.Namespace) -> None:
        self._cluster = cluster
        self._options = options
        self._count: int = options.objects
        self._user = cluster.operator_user
        self._fleet = Fleet(cluster.plane.kubeconfig(), NAMESPACE, self._count)

    def measure(self, bare_rate: float) -> list[Figure]:
        """All figures, in the table's order."""
        profiler = ("-m", "cProfile", "-o", str(self._options.profile)) if self._options.profile else ()
        with self._cluster.running_operator(profiler) as operator:
            pid = operator.process.pid
            empty = self._start(pid)
            figures = self._first_jobs(bare_rate)
            figures += self._run_to_the_end(pid, empty)
            figures += self._rest(pid, empty)
            figures += self._reapply()
        return figures + self._restart()

    def _start(self, pid: int) -> ProcessFigures:
        self._cluster.wait_for_watch(self._user)
        time.sleep(_REST_SECONDS)
        return read_process(pid)

    def _first_jobs(self, bare_rate: float) -> list[Figure]:
        self._fleet.create()
        self._cluster.wait_for_stage(Stage.PREPARE, self._count, _FIRST_JOBS_LIMIT_SECONDS)
        rate = self._count / seconds_to_first_jobs(self._cluster.audit.requests, self._user)
        _say(f"{rate:.0f} objects/s to their first Job")
        share = rate / bare_rate
        return [
            Figure("objectsPerSecond", "objects/s to the first Job", rate, f"{rate:.0f}", f">= {_RATE_GOAL:.0f}"),
            Figure("bareObjectsPerSecond", "the same with a bare client", bare_rate, f"{bare_rate:.0f}"),
            Figure("shareOfBare", "share of the bare client's rate", share, f"{share:.2f}", f">= {_SHARE_GOAL:.2f}"),
        ]

    def _run_to_the_end(self, pid: int, empty: ProcessFigures) -> list[Figure]:
        self._cluster.wait_for_stage(Stage.PUBLISH, self._count, _LIMIT_SECONDS)
        longest = 1.5 * self._options.stage_seconds
        self._cluster.wait_for_rest(self._user, longest + _REST_SECONDS, _LIMIT_SECONDS)
        phases = self._fleet.phases()
        if phases != {"Succeeded": self._count}:
            raise RuntimeError(f"not every object succeeded: {phases}")
        requests = self._cluster.audit.requests
        hand_offs = hand_off_seconds(requests, self._user)
        cpu = (read_process(pid).cpu_seconds - empty.cpu_seconds) / self._count
        return [
            *self._writes(writes(requests, self._user)),
            *(_quantile(hand_offs, percent) for percent in (50, 99)),
            Figure("cpuSecondsPerObject", "operator's CPU per object", cpu, f"{1000 * cpu:.0f} ms"),
        ]

    def _writes(self, counts: Counter[str]) -> list[Figure]:
        per_object = counts.total() / self._count
        figures = [Figure("writesPerObject", "API writes per finished object", per_object, f"{per_object:.2f}")]
        for kind, count in sorted(counts.items()):
            each = count / self._count
            figures.append(Figure(f"writes: {kind}", f"  {kind}", each, f"{each:.2f}"))
        return figures

    def _rest(self, pid: int, empty: ProcessFigures) -> list[Figure]:
        _say(f"at rest for {self._options.idle_seconds:g} s")
        before = read_process(pid)
        time.sleep(self._options.idle_seconds)
        after = read_process(pid)
        idle = after.cpu_share_since(before)
        return [
            Figure("idleCpuShare", "idle CPU, of one core", idle, f"{idle:.2%}", "about 0"),
            _mebibytes("emptyBytes", "resident memory without objects", empty.resident_bytes),
            _mebibytes("fullBytes", "resident memory with all finished", after.resident_bytes),
            self._per_object("bytesPerObject", "  per object", after.resident_bytes - empty.resident_bytes),
            self._per_object(
                "cacheBytesPerObject", "  the cache alone", cache_bytes(self._cluster.plane.kubeconfig(), NAMESPACE)
            ),
        ]

    def _per_object(self, key: str, label: str, size: float) -> Figure:
        return Figure(key, label, size / self._count, f"{size / self._count / 1024:.0f} KiB")

    def _reapply(self) -> list[Figure]:
        self._fleet.apply()
        unchanged = self._writes_until_rest()
        self._fleet.apply({"example.com/commit": "2"})
        touched = self._writes_until_rest()
        return [
            Figure("writesOnReapply", "writes for applying all again", unchanged, f"{unchanged}", "0"),
            Figure("writesOnAnnotation", "writes for a new annotation on all", touched, f"{touched}", "0"),
        ]

    def _restart(self) -> list[Figure]:
        _say("the operator, restarted")
        with self._cluster.running_operator() as operator:
            self._cluster.wait_for_watch(self._user)
            made = self._writes_until_rest()
            figures = read_process(operator.process.pid)
        return [
            Figure("writesOnRestart", "writes after a restart", made, f"{made}", "0"),
            _mebibytes("restartedBytes", "resident memory after a restart", figures.resident_bytes),
            Figure("restartCpuSeconds", "CPU of a restart", figures.cpu_seconds, f"{figures.cpu_seconds:.1f} s"),
        ]

    def _writes_until_rest(self) -> int:
        self._cluster.audit.read()
        known = len(self._cluster.audit.requests)
        self._cluster.wait_for_rest(self._user, 2 * _REST_SECONDS, _LIMIT_SECONDS)
        return writes(self._cluster.audit.requests[known:], self._user).total()


def _quantile(seconds: Sequence[float], percent: int) -> Figure:
    value = statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]
    return Figure(f"handOffSecondsP{percent}", f"hand-off between stages, p{percent}", value, f"{1000 * value:,.0f} ms")


def _mebibytes(key: str, label: str, size: float) -> Figure:
    return Figure(key, label, size, f"{size / 2**20:.0f} MiB")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
