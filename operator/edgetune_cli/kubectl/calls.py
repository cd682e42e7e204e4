"""Calls of kubectl, and the options that they share."""

import json
import shlex
import shutil
import subprocess
from typing import Annotated, Any, NoReturn

import typer

from edgetune_cli.output import detail, print_output, say
from edgetune_operator.api import names

RESOURCE = f"{names.PLURAL}.{names.GROUP}"

_COMPLETION_SECONDS = 3


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """Names of LoraFineTunes in the namespace of a command line."""
    return _completions(context, incomplete, "get", RESOURCE, "-o", "name", option="namespace")


def _complete_namespace(context: typer.Context, incomplete: str) -> list[str]:
    return _completions(context, incomplete, "get", "namespaces", "-o", "name")


def _complete_context(context: typer.Context, incomplete: str) -> list[str]:
    return _completions(context, incomplete, "config", "get-contexts", "-o", "name")


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace; default: the context's.", autocompletion=_complete_namespace),
]
Name = Annotated[
    str, typer.Argument(help="Name of the LoraFineTune.", show_default=False, autocompletion=complete_name)
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig.", autocompletion=_complete_context)
]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Path of the kubeconfig.")]


class KubectlFailed(Exception):
    """kubectl exits with an error; the message is kubectl's."""


def given(**options: str | None) -> list[str]:
    """Options in kubectl's syntax, without those that have no value."""
    return [f"--{name}={value}" for name, value in options.items() if value]


def _completions(context: typer.Context, incomplete: str, *arguments: str, option: str = "") -> list[str]:
    """Names that kubectl prints and that begin as a word on the command line; nothing if it fails.

    Args:
        context: the command line so far.
        incomplete: the word.
        arguments: the call of kubectl.
        option: a further option to take from the command line, besides the access to the cluster.
    """
    program = shutil.which("kubectl")
    if program is None:
        return []
    names_of = (*filter(None, [option]), "context", "kubeconfig")
    access = given(**{name: context.params.get(name) for name in names_of})
    call = [program, *arguments, *access, f"--request-timeout={_COMPLETION_SECONDS}s"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    found = [line.rpartition("/")[2] if arguments[0] == "get" else line for line in done.stdout.splitlines()]
    return sorted(name for name in found if name.startswith(incomplete))


def kubectl() -> str:
    """Path of kubectl; exits with an error if there is none."""
    found = shutil.which("kubectl")
    if found is None:
        fail("kubectl is not on the PATH: install it and configure its access to the cluster")
    return found


def read(*arguments: str) -> dict[str, Any]:
    """The JSON that kubectl prints; exits with kubectl's message if it fails."""
    try:
        return read_or_raise(*arguments)
    except KubectlFailed as error:
        fail(str(error))


def read_or_raise(*arguments: str) -> dict[str, Any]:
    """The JSON that kubectl prints.

    Raises:
        KubectlFailed: kubectl exits with an error.
    """
    detail(f"kubectl {shlex.join(arguments)}")
    done = subprocess.run([kubectl(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KubectlFailed(done.stderr.strip())
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def run(*arguments: str) -> None:
    """Print what kubectl prints; exits with its exit code if it fails."""
    detail(f"kubectl {shlex.join(arguments)}")
    code = print_output([kubectl(), *arguments])
    if code != 0:
        raise typer.Exit(code)


def fail(message: str) -> NoReturn:
    """Print an error message and exit with 1."""
    say(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(1)
