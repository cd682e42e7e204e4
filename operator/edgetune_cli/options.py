"""Options that several commands share, and functions that read the files that they name."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from edgetune_cli.documents.single import UnusableFile, load_object
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import local_profile
from edgetune_cli.local.objects import DEFAULT_WORK_DIR as DEFAULT_WORK_DIR
from edgetune_cli.output import DataFormat, shown_logging, verbosity
from edgetune_contract.values.suggestions import did_you_mean, nearest
from edgetune_operator.api.profiles.profile import InvalidProfiles, Profile, load_profiles

_Command = TypeVar("_Command", bound=Callable[..., None])

# A local run can read files, and trusts this machine's certificate authorities.
_HERE: Mapping[str, Any] = {"allow_file_uris": True, "ca_bundle_config_map": None}

WorkDir = Annotated[
    Path, typer.Option("--workdir", help="Folder for objects, store, logs and temporary files.", envvar="EDGETUNE_HOME")
]
Profiles = Annotated[
    Path | None,
    typer.Option(
        "--profiles", help="YAML file with profiles, to use a bucket instead of a folder.", show_default=False
    ),
]
Output = Annotated[DataFormat, typer.Option("--output", "-o", help="Output format.")]

_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and problems only.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print what happens inside.")]
_OBJECT_SUFFIXES = (".yaml", ".yml")
_UNKNOWN_CHOICE = re.compile(r"(?P<value>'.*'|\".*\") is not one of (?P<choices>.*)\.", re.DOTALL)


class App(typer.Typer):
    """Commands with the options that all have, -h, -q and -v, and suggestions for mistyped values of options."""

    def __init__(self, help: str, add_completion: bool = True) -> None:  # noqa: A002 - the name in Typer
        super().__init__(
            cls=_SuggestingGroup,
            help=help,
            no_args_is_help=True,
            add_completion=add_completion,
            context_settings={"help_option_names": ["-h", "--help"]},
            pretty_exceptions_enable=False,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Command], _Command]:
        """Register a function as a command."""
        register = super().command(name, **settings)

        def decorator(function: _Command) -> _Command:
            register(_with_verbosity(function))
            return function

        return decorator


class _SuggestingGroup(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        arguments = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ") or _meant_filename(error, arguments)
            if unknown := _UNKNOWN_CHOICE.fullmatch(error.message):
                choices = re.findall(r"'([^']*)'", unknown["choices"])
                meant = nearest(unknown["value"][1:-1], choices)
                error.message += f" Did you mean {meant!r}?" if meant else ""
            raise


def meant_filename(argument: str | None) -> str:
    """The end of a message about an argument that should follow -f; empty if it is not the name of an object's file."""
    is_file = argument is not None and argument.endswith(_OBJECT_SUFFIXES) and "://" not in argument
    return f"; did you mean -f {argument}?" if is_file else ""


def _meant_filename(error: Any, arguments: Sequence[str]) -> str:
    """What to add to the message that -f is missing: the argument that is probably its value."""
    if "-f" not in getattr(error.param, "opts", ()):
        return ""
    valued = {name for each in error.ctx.command.params if not getattr(each, "is_flag", True) for name in each.opts}
    free = [each for before, each in pairwise(arguments) if before not in valued]
    meant = next(filter(None, map(meant_filename, free)), "")
    return meant.removeprefix("; ").replace("did", "Did", 1)


def _with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """A command with the options --quiet and --verbose."""

    @functools.wraps(function)
    def command(*arguments: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> None:
        verbosity.quiet, verbosity.verbose = quiet, verbose
        with shown_logging() if verbose else contextlib.nullcontext():
            function(*arguments, **options)

    signature = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", _Quiet), ("verbose", _Verbose))
    ]
    vars(command)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *added])
    command.__annotations__ = {**function.__annotations__, "quiet": _Quiet, "verbose": _Verbose}
    return command


def read_object(filename: Path) -> dict[str, Any]:
    """The only object of a file, validated; exits with an error if there is none."""
    try:
        return load_object(filename)
    except UnusableFile as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def read_profiles(path: Path | None, folder: Path) -> dict[str, Profile]:
    """Profiles of a file, or without a file the one of local runs in `folder`; exits with an error if invalid."""
    if path is None:
        return {"default": local_profile(folder)}
    try:
        return {name: profile.model_copy(update=_HERE) for name, profile in load_profiles(path).items()}
    except InvalidProfiles as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def require_profile(filename: Path, name: str, profiles: Mapping[str, Profile]) -> Profile:
    """The profile that the object of a file names; exits with an error if there is none."""
    if name in profiles:
        return profiles[name]
    meant = did_you_mean(name, profiles) or "; name its file with --profiles"
    fail(f"{filename}: spec.profile: there is no profile {name!r}{meant}", ExitStatus.UNUSABLE_INPUT)
    return None
