"""`kubectl edgetune`: shows and steers LoraFineTunes of a cluster. It calls kubectl, whose access applies."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from edgetune_cli.kubectl import actions
from edgetune_cli.kubectl.calls import (
    RESOURCE,
    Context,
    Kubeconfig,
    KubectlFailed,
    Name,
    Namespace,
    complete_name,
    fail,
    given,
    read,
    read_or_raise,
    run,
)
from edgetune_cli.kubectl.catalog import DEFAULT_PLACE, read_catalog
from edgetune_cli.kubectl.nodes import pod_on
from edgetune_cli.options import App, Output
from edgetune_cli.output import DataFormat, SafeConsole, print_data, say
from edgetune_cli.status_tables import show_outcome, show_record
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus

_SCORES = ("BASE", "TUNED", "EDGE")
_COLUMNS = ("NAMESPACE", "NAME", "PHASE", "PROGRESS", *_SCORES, "ADAPTER", "EDGE SIZE", "NOTE", "MESSAGE")
_VISIBILITY = "/apis/visibility.kueue.x-k8s.io/v1beta2"

app = App(help="Show and steer LoraFineTunes of the current cluster.", add_completion=False)


@app.command()
def get(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of an object; default: all.", show_default=False, autocompletion=complete_name),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")] = False,
    selector: Annotated[str | None, typer.Option("--selector", "-l", help="Label selector, such as team=a.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print a line for each change, until Ctrl-C.")] = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """List LoraFineTunes with progress, scores and sizes."""
    scope = ["--all-namespaces"] if all_namespaces else given(namespace=namespace)
    wanted = [*([name] if name else []), *scope, *given(selector=selector)]
    access = given(context=context, kubeconfig=kubeconfig)
    if watch and output is not DataFormat.TEXT:
        fail("--watch prints text: leave out -o, or use kubectl get --watch -o json")
    if watch:
        actions.watch_changes([*wanted, *access], _change)
    found = read("get", RESOURCE, *wanted, *access, "-o", "json")
    if output is not DataFormat.TEXT:
        print_data(found, output)
        return
    items = found.get("items", [found])
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in _COLUMNS:
        table.add_column(title, no_wrap=title != "MESSAGE")
    for item in items:
        status = _status(item)
        shown = status.display
        figures = (
            (shown.progress, shown.base, shown.tuned, shown.edge, shown.adapter_size, shown.edge_size, shown.note)
            if shown
            else ()
        )
        metadata = item["metadata"]
        table.add_row(
            metadata["namespace"], metadata["name"], status.phase, *(figures or ("",) * 7), _ready_message(status)
        )
    SafeConsole().print(table)


@app.command()
def describe(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Show one LoraFineTune: its stages, scores, sizes, warnings, conditions, history and Events.

    To go back to a version in the history, set spec.publish.pin to its first 12 digits.
    """
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    document = read("get", RESOURCE, name, *access, "-o", "json")
    if output is not DataFormat.TEXT:
        print_data(document, output)
        return
    status = _status(document)
    console = SafeConsole()
    console.print(f"{document['metadata']['namespace']}/{name}: {status.phase}", style="bold", highlight=False)
    show_outcome(console, status, frozenset(row.name for row in status.stages))
    for row in status.stages:
        if row.state is StageState.QUEUED:
            console.print(f"\n{_queue_position(row, document['metadata']['namespace'], access)}", highlight=False)
    show_record(console, status)
    console.print("\nEvents", style="bold")
    selector = f"involvedObject.kind={names.KIND},involvedObject.name={name}"
    run("get", "events", *access, "--field-selector", selector, "--sort-by", ".lastTimestamp")


@app.command()
def logs(
    name: Name,
    namespace: Namespace = None,
    stage: Annotated[Stage | None, typer.Option(help="Stage; default: the running one, or the last one.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines of the log.")] = False,
    node: Annotated[
        int | None, typer.Option(help="Node of a training on several, from 0.", min=0, show_default=False)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Process of a training, from 0: its node.", min=0, show_default=False)
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a stage's Job, as long as its Pod exists; of a training on several nodes, that of one of them.

    The processes of a node share its log, in which each line of one of several has its rank.
    """
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    status = _status(read("get", RESOURCE, name, *access, "-o", "json"))
    row = _row(status, stage)
    if row is None:
        fail(f"{name}: {f'stage {stage} has not run yet' if stage else 'no stage has run yet'}")
    # Of several Pods of a Job, kubectl takes any.
    has_nodes = row.name is Stage.TRAIN and (node is not None or rank is not None)
    target = pod_on(row.job, node, rank, access) if has_nodes else f"job/{row.job}"
    run("logs", target, *access, *(["--follow"] if follow else []))


@app.command()
def profiles(
    namespace: Namespace = None,
    catalog: Annotated[str, typer.Option(help="NAMESPACE/NAME of the release's ConfigMap.")] = DEFAULT_PLACE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """List the profiles that LoraFineTunes of a namespace may use."""
    access = given(context=context, kubeconfig=kubeconfig)
    place, _, name = catalog.rpartition("/")
    found = read("get", "configmap", name, f"--namespace={place}", *access, "-o", "json")
    try:
        entries = read_catalog(found)
    except ValueError as error:
        fail(f"ConfigMap {catalog}: {error}")
    if namespace is None:
        chosen = read("config", "view", "--minify", *access, "-o", "json")["contexts"][0]["context"]
        namespace = chosen.get("namespace") or "default"
    labels: Mapping[str, str] = {}
    if any(entry.needs_labels for entry in entries):
        labels = read("get", "namespace", namespace, *access, "-o", "json")["metadata"].get("labels") or {}
    usable = [entry for entry in entries if entry.is_open_to(Tenant(namespace, labels))]
    if not usable:
        fail(f"namespace {namespace} may use none of the profiles; ask the platform team")
    if output is not DataFormat.TEXT:
        shown = ("name", "gpu", "queue", "sources")
        print_data([{name: getattr(entry, name) for name in shown} for entry in usable], output)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("PROFILE", "GPU", "QUEUE", "SOURCES"):
        table.add_column(title, no_wrap=title != "SOURCES")
    for entry in usable:
        table.add_row(entry.name, entry.gpu, entry.queue, entry.sources)
    SafeConsole().print(table)


for action in (actions.wait, actions.retry, actions.suspend, actions.resume, actions.pin, actions.unpin):
    app.command()(action)


def main() -> None:
    """Entry point of the `kubectl-edgetune` command, which kubectl finds on the PATH."""
    app(prog_name="kubectl edgetune")


def _queue_position(row: StageStatus, namespace: str, access: list[str]) -> str:
    """Position of a waiting stage, which Kueue's visibility API tells with the user's own rights."""
    try:
        job = read_or_raise("get", "job", row.job, *access, "-o", "json")
        queue = (job["metadata"].get("labels") or {}).get(names.QUEUE_LABEL, "")
        path = f"{_VISIBILITY}/namespaces/{namespace}/localqueues/{queue}/pendingworkloads"
        # kubectl refuses a namespace beside --raw, which has it.
        cluster = [option for option in access if not option.startswith("--namespace=")]
        pending = read_or_raise("get", "--raw", path, *cluster)["items"]
    except KubectlFailed as error:
        return f"Position in the queue: not visible: {error}"
    found = next((each for each in pending if _is_of_job(each, row.job)), None)
    if found is None:
        return f"Position in the queue: {row.name} does not wait in queue {queue} at the moment"
    own, all_queues = found["positionInLocalQueue"] + 1, found["positionInClusterQueue"] + 1
    return f"Position in the queue: {own} in queue {queue}, {all_queues} in its ClusterQueue"


def _is_of_job(workload: Mapping[str, Any], job: str) -> bool:
    return any(owner["name"] == job for owner in workload["metadata"].get("ownerReferences") or ())


def _row(status: LoraFineTuneStatus, stage: Stage | None) -> StageStatus | None:
    """The row of the stage, if it has a Job. Without a stage: the running row, or the one that started last."""
    with_jobs = [row for row in status.stages if row.job and stage in (None, row.name)]
    return max(with_jobs, key=lambda row: (row.state.has_job, row.started_at or ""), default=None)


def _status(document: Mapping[str, Any]) -> LoraFineTuneStatus:
    """Status of an object, without the fields of another version that this one cannot read."""
    written: Mapping[str, Any] = document.get("status") or {}
    try:
        return LoraFineTuneStatus.model_validate(written)
    except ValidationError as error:
        unread = {str(problem["loc"][0]) for problem in error.errors()}
    metadata = document["metadata"]
    message = (
        f"{metadata['namespace']}/{metadata['name']}: another version of the operator wrote this status; fields that "
        f"this plugin cannot read are not shown: {', '.join(sorted(unread))}"
    )
    say(message, fg=typer.colors.YELLOW, err=True)
    return LoraFineTuneStatus.model_validate({key: value for key, value in written.items() if key not in unread})


def _change(document: Mapping[str, Any]) -> str:
    """A line about the state of an object."""
    status, metadata = _status(document), document["metadata"]
    progress = status.display.progress if status.display is not None and status.progress is not None else ""
    return f"{metadata['namespace']}/{metadata['name']}: {status.phase}: {progress or _ready_message(status)}"


def _ready_message(status: LoraFineTuneStatus) -> str:
    return next((condition.message for condition in status.conditions if condition.type == "Ready"), "")


if __name__ == "__main__":
    main()
