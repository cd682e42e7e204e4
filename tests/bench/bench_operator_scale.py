"""Whether the operator's cost for each object grows with their number: fleets of growing size, one after the other.

    python tests/bench/bench_operator_scale.py [--counts N ...] [--large] [--stage-seconds S] [--json FILE]

Each fleet is created at once in one namespace of a fresh control plane, and runs until all objects are finished. Cost
is time, processor time of the API server and of the operator, and requests of the operator, each divided by the number
of objects. Stages are short, so that the machine is busy all the time and the time of a stage does not hide the cost.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_cluster import NAMESPACE, BenchCluster, running_bench_cluster
from bench.fleet import Fleet
from bench.process_figures import read_process
from bench.report import print_table, write_json
from cluster.folders import cache_folder
from cluster.processes import Daemon
from edgetune_contract.stages import Stage
from support.audit import Request, seconds_to_first_jobs

_COUNTS = (500, 1000, 2000)
_LARGE = 4000
_RATIO_GOAL = 1.15
_RATE_GOAL = 100.0
_LIMIT_SECONDS = 3600
_READS = ("get", "list", "watch")


@dataclass(frozen=True)
class Cost:
    """What one fleet took."""

    count: int
    jobs_per_second: float
    """Objects divided by the time from the first object to the first Job of the last one."""

    seconds: float
    """From the first object until the last one is finished."""

    api_server_seconds: float
    """Processor time."""

    operator_seconds: float
    """Processor time."""

    requests: Counter[str]
    """The operator's, by verb and resource."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    label: str
    value: Callable[[Cost], float]
    shown: str
    """Format of a value."""

    grows: bool = True
    """Whether it is a cost of which the ratio of the fleets counts."""


ROWS = (
    Row("objectsPerSecond", "objects/s to the first Job", lambda cost: cost.jobs_per_second, "{:.0f}", grows=False),
    Row("seconds", "time per object", lambda cost: cost.seconds / cost.count, "{:.3f} s"),
    Row("apiServer", "API server's CPU per object", lambda cost: cost.api_server_seconds / cost.count, "{:.3f} s"),
    Row("operator", "operator's CPU per object", lambda cost: cost.operator_seconds / cost.count, "{:.3f} s"),
    Row("requests", "requests per object", lambda cost: cost.requests.total() / cost.count, "{:.2f}"),
    Row("reads", "  reads", lambda cost: _reads(cost) / cost.count, "{:.2f}", grows=False),
)


def main() -> None:
    """Measure each fleet, print and write."""
    options = _parse()
    counts = sorted({*options.counts, *((_LARGE,) if options.large else ())})
    costs = []
    for count in counts:
        costs.append(_measure(count, options.stage_seconds))
        shown = ", ".join(f"{row.label.strip()} {row.shown.format(row.value(costs[-1]))}" for row in ROWS)
        print(f"bench: {count} objects: {shown}", file=sys.stderr, flush=True)
    rows = [_cells(row, costs) for row in ROWS]
    print_table(
        f"Fleets of growing size, stages of {options.stage_seconds:g} s",
        ["", *(f"{cost.count:,}" for cost in costs), "largest / smallest", "goal"],
        rows,
        [f"All figures: {options.json}"],
    )
    figures = {f"{row.key}{cost.count}": row.value(cost) for row in ROWS for cost in costs}
    write_json(options.json, {"counts": counts, "stageSeconds": options.stage_seconds}, figures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=_COUNTS, help="sizes of the fleets (500 1000 2000)")
    parser.add_argument("--large", action="store_true", help=f"also measure {_LARGE:,} objects")
    parser.add_argument("--stage-seconds", type=float, default=1.0, help="run time of a stage's Pod (1, ±50 %%)")
    parser.add_argument(
        "--json", type=Path, default=cache_folder() / "bench" / "operator-scale.json", help="file for the figures"
    )
    return parser.parse_args()


def _measure(count: int, stage_seconds: float) -> Cost:
    print(f"bench: {count} objects", file=sys.stderr, flush=True)
    with running_bench_cluster(stage_seconds) as cluster, cluster.running_operator() as operator:
        cluster.wait_for_watch(cluster.operator_user)
        fleet = Fleet(cluster.plane.kubeconfig(), NAMESPACE, count)
        known = len(cluster.audit.requests)
        before = _cpu(cluster), read_process(operator.process.pid).cpu_seconds
        started = time.monotonic()
        fleet.create()
        cluster.wait_for_stage(Stage.PUBLISH, count, _LIMIT_SECONDS)
        _wait_until_finished(fleet)
        seconds = time.monotonic() - started
        after = _cpu(cluster), read_process(operator.process.pid).cpu_seconds
        cluster.audit.read()
        own = [each for each in cluster.audit.requests[known:] if each.user == cluster.operator_user]
        rate = count / seconds_to_first_jobs(cluster.audit.requests, cluster.operator_user)
        return Cost(count, rate, seconds, after[0] - before[0], after[1] - before[1], _kinds(own))


def _cpu(cluster: BenchCluster) -> float:
    pid = Daemon(cluster.plane.folder, "kube-apiserver").pid
    if pid is None:
        raise RuntimeError("the API server is not running")
    return read_process(pid).cpu_seconds


def _wait_until_finished(fleet: Fleet) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while (phases := fleet.phases()) != {"Succeeded": fleet.count}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not every object has succeeded: {phases}")
        time.sleep(2)


def _kinds(requests: Sequence[Request]) -> Counter[str]:
    """Requests without those for Leases, which depend on the time only."""
    return Counter(f"{each.verb} {each.resource}" for each in requests if each.resource != "leases")


def _reads(cost: Cost) -> int:
    return sum(number for kind, number in cost.requests.items() if kind.split()[0] in _READS)


def _cells(row: Row, costs: Sequence[Cost]) -> list[str]:
    values = [row.value(cost) for cost in costs]
    shown = [row.shown.format(value) for value in values]
    if row.grows:
        return [row.label, *shown, f"{max(values) / min(values):.2f}", f"<= {_RATIO_GOAL}"]
    goal = f">= {_RATE_GOAL:.0f} at 1,000" if row.key == "objectsPerSecond" else ""
    return [row.label, *shown, "", goal]


if __name__ == "__main__":
    main()
