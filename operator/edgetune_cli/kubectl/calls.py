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

Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; default: the context's.")]
Name = Annotated[str, typer.Argument(help="Name of the LoraFineTune.", show_default=False)]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Path of the kubeconfig.")]


class KubectlFailed(Exception):
    """kubectl exits with an error; the message is kubectl's."""


def given(**options: str | None) -> list[str]:
    """Options in kubectl's syntax, without those that have no value."""
    return [f"--{name}={value}" for name, value in options.items() if value]


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
