"""`kubectl edgetune`: shows LoraFineTunes of a cluster. It calls kubectl, whose context and permissions apply."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.table import Table

from edgetune_cli.output import SafeConsole, print_output, say
from edgetune_cli.status_tables import show_outcome
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.objects import SHORT_VERSION, LoraFineTuneStatus, StageState, StageStatus
from edgetune_operator.api.units import format_bytes, format_share

_RESOURCE = f"{names.PLURAL}.{names.GROUP}"

app = typer.Typer(
    help="Show LoraFineTunes of the current cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; default: the context's.")]
_Name = Annotated[str, typer.Argument(help="Name of the LoraFineTune.", show_default=False)]
_Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
_Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Path of the kubeconfig.")]


@app.command()
def get(
    name: Annotated[str | None, typer.Argument(help="Name of an object; default: all.", show_default=False)] = None,
    namespace: _Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")] = False,
    selector: Annotated[str | None, typer.Option("--selector", "-l", help="Label selector, such as team=a.")] = None,
    context: _Context = None,
    kubeconfig: _Kubeconfig = None,
) -> None:
    """List LoraFineTunes with progress, scores and sizes."""
    scope = ["--all-namespaces"] if all_namespaces else _given(namespace=namespace)
    wanted = [*([name] if name else []), *scope, *_given(selector=selector)]
    found = _read("get", _RESOURCE, *wanted, *_given(context=context, kubeconfig=kubeconfig), "-o", "json")
    items = found.get("items", [found])
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    titles = ("NAMESPACE", "NAME", "PHASE", "PROGRESS", "BASE", "TUNED", "EDGE", "ADAPTER", "EDGE SIZE", "MESSAGE")
    for title in titles:
        table.add_column(title, no_wrap=title != "MESSAGE")
    for item in items:
        status = _status(item)
        shown = status.display
        figures = (
            (shown.progress, shown.base, shown.tuned, shown.edge, shown.adapter_size, shown.edge_size) if shown else ()
        )
        metadata = item["metadata"]
        table.add_row(
            metadata["namespace"], metadata["name"], status.phase, *(figures or ("",) * 6), _ready_message(status)
        )
    SafeConsole().print(table)


@app.command()
def describe(
    name: _Name, namespace: _Namespace = None, context: _Context = None, kubeconfig: _Kubeconfig = None
) -> None:
    """Show one LoraFineTune: its stages, scores, sizes, warnings, conditions, history and Events.

    To go back to a version in the history, set spec.publish.pin to its first 12 digits.
    """
    access = _given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    document = _read("get", _RESOURCE, name, *access, "-o", "json")
    status = _status(document)
    console = SafeConsole()
    console.print(f"{document['metadata']['namespace']}/{name}: {status.phase}", style="bold", highlight=False)
    show_outcome(console, status, frozenset(row.name for row in status.stages))
    table = Table(title="\nConditions", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("type", "status", "reason", "message"):
        table.add_column(title)
    for condition in status.conditions:
        table.add_row(condition.type, condition.status, condition.reason, condition.message)
    console.print(table)
    for artifact in status.artifacts:
        console.print(f"{artifact.name}: {artifact.uri}", highlight=False)
    if status.history:
        console.print(_history(status))
    console.print("\nEvents", style="bold")
    selector = f"involvedObject.kind={names.KIND},involvedObject.name={name}"
    _run("get", "events", *access, "--field-selector", selector, "--sort-by", ".lastTimestamp")


@app.command()
def logs(
    name: _Name,
    namespace: _Namespace = None,
    stage: Annotated[Stage | None, typer.Option(help="Stage; default: the running one, or the last one.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines of the log.")] = False,
    context: _Context = None,
    kubeconfig: _Kubeconfig = None,
) -> None:
    """Print the log of a stage's Job, as long as its Pod exists."""
    access = _given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    status = _status(_read("get", _RESOURCE, name, *access, "-o", "json"))
    row = _row(status, stage)
    if row is None:
        _fail(f"{name}: {f'stage {stage} has not run yet' if stage else 'no stage has run yet'}")
    _run("logs", f"job/{row.job}", *access, *(["--follow"] if follow else []))


def main() -> None:
    """Entry point of the `kubectl-edgetune` command, which kubectl finds on the PATH."""
    app()


def _history(status: LoraFineTuneStatus) -> Table:
    table = Table(title="\nHistory", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("finished", "outcome", "version", "edge", "edge size"):
        table.add_column(title, no_wrap=True)
    for entry in status.history:
        table.add_row(
            entry.finished_at or "",
            entry.outcome,
            entry.version[:SHORT_VERSION],
            format_share(entry.scores.edge if entry.scores else None),
            format_bytes(entry.sizes.edge_bytes if entry.sizes else None),
        )
    return table


def _row(status: LoraFineTuneStatus, stage: Stage | None) -> StageStatus | None:
    """The row of the stage, if it has a Job. Without a stage: the running row, or the one that started last."""
    with_jobs = [row for row in status.stages if row.job and stage in (None, row.name)]
    return max(with_jobs, key=lambda row: (row.state is StageState.RUNNING, row.started_at or ""), default=None)


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


def _ready_message(status: LoraFineTuneStatus) -> str:
    return next((condition.message for condition in status.conditions if condition.type == "Ready"), "")


def _given(**options: str | None) -> list[str]:
    """Options in kubectl's syntax, without those that have no value."""
    return [f"--{name}={value}" for name, value in options.items() if value]


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        _fail("kubectl is not on the PATH: install it and configure its access to the cluster")
    return found


def _read(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([_kubectl(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _fail(done.stderr.strip())
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _run(*arguments: str) -> None:
    code = print_output([_kubectl(), *arguments])
    if code != 0:
        raise typer.Exit(code)


def _fail(message: str) -> NoReturn:
    say(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
