"""`edgetune describe`: all that the last run of an object on this machine left in its status."""

from edgetune_cli.options import DEFAULT_WORK_DIR, Output, WorkDir
from edgetune_cli.output import DataFormat, SafeConsole, print_data
from edgetune_cli.status_tables import show_outcome, show_record
from edgetune_cli.store.browse.chosen import Filename, Name, Namespace, choose


def describe(
    name: Name = None,
    filename: Filename = None,
    namespace: Namespace = None,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    output: Output = DataFormat.TEXT,
) -> None:
    """Show an object that was run here: its stages, scores, sizes, warnings, conditions, artifacts and history.

    `kubectl edgetune describe` does the same for an object of a cluster.
    """
    chosen = choose(name, filename, namespace, workdir)
    if output is not DataFormat.TEXT:
        print_data(dict(chosen.document), output)
        return
    console, status = SafeConsole(), chosen.status
    console.print(f"{chosen.title}: {status.phase}", style="bold", highlight=False)
    show_outcome(console, status, frozenset(row.name for row in status.stages))
    show_record(console, status)
