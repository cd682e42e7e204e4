"""What steers one LoraFineTune of a cluster: wait, retry, suspend, resume, pin, unpin.

Changes have the field manager `edgetune`. Flux removes fields that kubectl's own manager has set, and leaves these as
they are while the file in Git does not have them.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

import typer

from edgetune_cli.durations import parse_duration
from edgetune_cli.kubectl.calls import (
    RESOURCE,
    Context,
    Kubeconfig,
    Name,
    Namespace,
    fail,
    given,
    kubectl,
    read,
)
from edgetune_cli.output import say
from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.status.object_status import SHORT_VERSION
from edgetune_operator.decisions.observe import observe

_TIMED_OUT = 124
_PUBLISHED = ("Succeeded", "Succeeded: Pinned")
_RECONNECT_SECONDS = 1.0


def wait(
    name: Name,
    namespace: Namespace = None,
    timeout: Annotated[
        str | None, typer.Option(help="Longest wait, such as 90s, 30m, 4h; default: no limit.", show_default=False)
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait until a LoraFineTune is published or needs somebody to act, and print what it is doing meanwhile.

    Exits with 0 if it is Ready, 1 if it is Stalled or suspended, or 124 after --timeout.
    """
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    deadline = None if timeout is None else time.monotonic() + _seconds(timeout)
    last = ""
    for document in _watch([name, *access], deadline):
        code, message = _verdict(document)
        if message != last:
            say(message)
            last = message
        if code is not None:
            raise typer.Exit(code)
    say(f"{name}: not done after {timeout}", fg=typer.colors.RED, err=True)
    raise typer.Exit(_TIMED_OUT)


def retry(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Retry what failed, and check whether base and data have changed."""
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    token = f"kubectl {timestamp(datetime.now(UTC))}"
    change = {"metadata": {"annotations": {names.RETRY_REQUESTED_ANNOTATION: token}}}
    _patch(name, access, change, "will be retried", f"f:{names.RETRY_REQUESTED_ANNOTATION}")


def suspend(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop the running stage and start no other one; a training writes a checkpoint first."""
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    _patch(name, access, {"spec": {"suspend": True}}, "is suspended", "f:suspend")


def resume(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Continue a suspended LoraFineTune."""
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    _patch(name, access, {"spec": {"suspend": False}}, "continues", "f:suspend")


def pin(
    name: Name,
    version: Annotated[
        str | None,
        typer.Argument(
            help="First 12 to 64 digits of a version; default: the one before the live one.", show_default=False
        ),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Point latest.json at an earlier version, at once and without training; `unpin` goes back to the spec's own."""
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    if version is None:
        version = _previous(name, read("get", RESOURCE, name, *access, "-o", "json"))
    what = f"is pinned to version {version[:SHORT_VERSION]}"
    _patch(name, access, {"spec": {"publish": {"pin": version}}}, what, "f:pin")


def unpin(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Publish the spec's own version again, if its gates hold."""
    access = given(namespace=namespace, context=context, kubeconfig=kubeconfig)
    _patch(name, access, {"spec": {"publish": {"pin": ""}}}, "is no longer pinned", "f:pin")


def _patch(name: str, access: list[str], change: Mapping[str, Any], what: str, field: str) -> None:
    """Change fields; say who else sets them, because that one may set them back."""
    options = ["--type=merge", f"--patch={json.dumps(change)}", f"--field-manager={names.MANAGER}"]
    changed = read("patch", RESOURCE, name, *access, *options, "--show-managed-fields", "-o", "json")
    say(f"{changed['metadata']['namespace']}/{name} {what}")
    others = [
        entry["manager"]
        for entry in changed["metadata"].get("managedFields") or ()
        if entry["manager"] != names.MANAGER and "subresource" not in entry and f'"{field}"' in json.dumps(entry)
    ]
    if others:
        say(f"Note: {', '.join(others)} also sets this field, and may set it back: change it there too", err=True)


def _previous(name: str, document: Mapping[str, Any]) -> str:
    """The published version before the live one."""
    status = document.get("status") or {}
    publication = status.get("publication") or {}
    live = (status.get("live") or (publication if publication.get("published") else {})).get("version")
    published = [str(run.get("version")) for run in status.get("history") or () if run.get("outcome") in _PUBLISHED]
    found: str | None = next((version for version in published if version != (live or published[0])), None)
    if found is None:
        fail(f"{name}: status.history has no other published version; name one (`edgetune versions` lists them)")
    return found


def _verdict(document: Mapping[str, Any]) -> tuple[int | None, str]:
    """Exit code, None while it is not final, and a line about the state."""
    metadata, status = document["metadata"], document.get("status") or {}
    title = f"{metadata['namespace']}/{metadata['name']}"
    if status.get("observedGeneration") != metadata.get("generation"):
        return None, f"{title}: waits for the operator"
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    line = f"{title}: {status.get('phase', '')}: {ready.get('message', '')}"
    requested = observe(document, jobs=(), pods=(), progress=None).new_retry
    is_suspended = ready.get("reason") == "Suspended"
    if requested and not is_suspended:
        return None, f"{title}: the requested retry waits for the operator"
    if (conditions.get("Reconciling") or {}).get("status") == "True":
        return None, line
    if (conditions.get("Stalled") or {}).get("status") == "True" or is_suspended:
        return 1, line
    return (0 if ready.get("status") == "True" else None), line


def watch_changes(wanted: Sequence[str], line_of: Callable[[Mapping[str, Any]], str]) -> NoReturn:
    """Print a line for each object as it is, and after each change of its line, until the process is stopped.

    Args:
        wanted: names and options of kubectl get.
        line_of: the line of an object.
    """
    lines: dict[str, str] = {}
    for document in _watch(wanted, None):
        uid, line = document["metadata"]["uid"], line_of(document)
        if lines.get(uid) != line:
            lines[uid] = line
            say(line)
            sys.stdout.flush()
    raise AssertionError("a watch without a deadline ended")


def _watch(wanted: Sequence[str], deadline: float | None) -> Iterator[dict[str, Any]]:
    """Objects as they are and after each change, until the deadline."""
    while True:
        found = read("get", RESOURCE, *wanted, "-o", "json")
        yield from found.get("items", [found])
        command = [kubectl(), "get", RESOURCE, *wanted, "--watch", "-o", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            timer = None if left is None else threading.Timer(left, process.kill)
            if timer is not None:
                timer.start()
            try:
                yield from _documents(process)
            finally:
                if timer is not None:
                    timer.cancel()
                process.kill()
        # The API server ends a watch after a while.
        if deadline is not None and time.monotonic() + _RECONNECT_SECONDS >= deadline:
            return
        time.sleep(_RECONNECT_SECONDS)


def _documents(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """The JSON values that kubectl prints one after the other, each over several lines."""
    decoder, text = json.JSONDecoder(), ""
    for line in process.stdout or ():
        text += line
        if line.rstrip() != "}":
            continue
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:  # a } within the value
            continue
        text = text[end:].lstrip()
        yield value


def _seconds(duration: str) -> float:
    seconds = parse_duration(duration)
    if seconds is None:
        fail(f"--timeout {duration}: give a number with s, m, h or d, such as 90s or 4h")
    return seconds
