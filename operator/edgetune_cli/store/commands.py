"""Commands on models in a store: list their versions, verify them, ask them.

They use the jobs' code, so that the store's layout is defined once. It is imported when a command runs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.options import (
    DEFAULT_WORK_DIR,
    Output,
    Profiles,
    WorkDir,
    meant_filename,
    read_object,
    read_profiles,
    require_profile,
)
from edgetune_cli.output import DataFormat, SafeConsole, print_data, say, working
from edgetune_cli.store.report import report, version_lines
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.version import VersionDocument
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.spec_check import parse_spec

if TYPE_CHECKING:
    from edgetune_jobs.publishing.verification import Verification
    from edgetune_jobs.store.store import Store

Answer = TypeVar("Answer")


def versions(
    model: Annotated[
        str | None, typer.Argument(help="…/models/NAME in a store, as a path or an s3:// URI.", show_default=False)
    ] = None,
    filename: Annotated[
        Path | None,
        typer.Option("--filename", "-f", help="YAML file of the model's LoraFineTune.", show_default=False),
    ] = None,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """List the versions of a model, newest first: scores, size, and which one latest.json names.

    To go back to a version, set spec.publish.pin to its first 12 digits. S3 credentials come from the standard AWS
    chain: environment, profile or role.
    """
    if (model is None) == (filename is None):
        fail("give either MODEL (a path or an s3:// URI) or -f FILE", ExitStatus.UNUSABLE_INPUT)
    known = read_profiles(profiles, workdir.resolve())
    if filename is not None:
        location, name, pin = _of_object(filename, known)
    else:
        location, name = _of_model(str(model), known if profiles else {})
        pin = ""

    rows = call_jobs(lambda: version_rows(open_store(location), name, pin))
    if not rows:
        fail(f"{location.uri}/models/{name} has no versions", ExitStatus.UNUSABLE_INPUT)
    print_data(rows, output, version_lines(rows))


def verify(
    uri: Annotated[
        str,
        typer.Argument(
            help="A model's latest.json or version, a stage's manifest.json, or an artifact's folder: path or s3://…",
            show_default=False,
        ),
    ],
    verify_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="PEM file with a public key, one of which must have signed the version; repeat it.", show_default=False
        ),
    ] = None,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Check every file of an artifact against its manifest, and print the artifact's provenance.

    With --verify-key, check also who signed the version. Files are read in place; no copy is stored on this machine.
    Exits with 0 if every file is unchanged, 1 if one is not, 2 if the artifact cannot be read.
    """
    known = read_profiles(profiles, Path()) if profiles else {}
    with working("Reading all files"):
        found = call_jobs(lambda: _verification(uri, known, verify_key or ()))
    if output is DataFormat.TEXT:
        report(_console(), found)
    else:
        print_data(found.model_dump(mode="json", exclude_none=True), output)
    raise typer.Exit(ExitStatus.NEGATIVE if found.problems else ExitStatus.OK)


def generate(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A model's latest.json, or the folder of an edge or merged model: path or s3:// URI.",
            show_default=False,
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The instruction; '-' reads standard input.")],
    edge_format: Annotated[
        EdgeFormat | None,
        typer.Option("--format", help="Format of the version's edge model; default: the first.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="NAME=TEXT: another column of the template; repeat it.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of the answer, in tokens.", min=1)] = 256,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Print an edge model's answer to a prompt, which is wrapped as in training. Decoding is greedy.

    A model in a bucket is downloaded once, and verified before each use.
    """
    columns = _columns(column or ())
    known = read_profiles(profiles, Path()) if profiles else {}
    folder = call_jobs(lambda: _model_folder(model, known, workdir.resolve() / "models", edge_format))
    text = sys.stdin.read() if prompt == "-" else prompt

    def answer() -> str:
        from edgetune_jobs.evaluation.text_generation import stream_answer

        pieces = []
        for piece in stream_answer(folder, text, max_new_tokens, columns):
            pieces.append(piece)
            if output is DataFormat.TEXT:
                say(piece, nl=False)
        return "".join(pieces)

    found = call_jobs(answer)
    print_data({"model": str(folder), "prompt": text, "answer": found}, output, [""])


def _columns(options: Sequence[str]) -> dict[str, str]:
    wrong = next((option for option in options if "=" not in option), None)
    if wrong is not None:
        fail(f"--column {wrong}: give NAME=TEXT", ExitStatus.UNUSABLE_INPUT)
    return dict(option.split("=", maxsplit=1) for option in options)


def _verification(uri: str, profiles: Mapping[str, Profile], key_files: Sequence[Path]) -> "Verification":
    from edgetune_jobs.publishing.addresses import parse_address
    from edgetune_jobs.publishing.signing.keys import read_public_keys
    from edgetune_jobs.publishing.verification import verify as verify_address

    address = parse_address(uri)
    keys = [key for file in key_files for key in read_public_keys(file)]
    return verify_address(open_store(location_of(address.root, profiles)), address, keys)


def _model_folder(
    model: str, profiles: Mapping[str, Profile], cache: Path, edge_format: EdgeFormat | None = None
) -> Path:
    """Local folder of the model. A folder on this machine is used as it is, even outside a store."""
    from edgetune_jobs.data.prompt_format import FILE
    from edgetune_jobs.publishing.addresses import parse_address
    from edgetune_jobs.publishing.fetched_models import fetch_model

    folder = Path(unquote(urlsplit(model).path)) if model.startswith("file://") else Path(model)
    if not model.startswith("s3://") and (folder / FILE).is_file():
        return folder
    address = parse_address(model)
    return fetch_model(open_store(location_of(address.root, profiles)), address, cache, edge_format)


def version_rows(store: "Store", name: str, pin: str) -> list[dict[str, Any]]:
    """Rows of `edgetune versions`, one for each version of a model, newest first."""
    from edgetune_jobs.publishing.publisher import Pointer
    from edgetune_jobs.publishing.versions import Versions

    current = Pointer(store, name).version
    rows = []
    for each in Versions(store, name).all():
        marks = {"current": each.version == current, "pinned": bool(pin) and each.version.startswith(pin)}
        details = {"problem": each.problem} if each.document is None else _summary(each.document)
        rows.append({"version": each.version, **marks, **details})
    return rows


def _summary(document: VersionDocument) -> dict[str, Any]:
    summary: dict[str, Any] = document.model_dump(
        mode="json",
        exclude_none=True,
        include={"created_at": True, "published": True, "refusals": True, "scores": True, "edge": {"artifact"}},
    )
    return {**summary, "gainedNothing": document.scores.gained_nothing}


def _of_object(filename: Path, profiles: Mapping[str, Profile]) -> tuple[StoreLocation, str, str]:
    """Store, name and pin of an object's model."""
    document = read_object(filename)
    pin = parse_spec(document["spec"]).publish.pin
    return location_of_object(filename, document, profiles), document["metadata"]["name"], pin


def location_of_object(filename: Path, document: Mapping[str, Any], profiles: Mapping[str, Profile]) -> StoreLocation:
    """Location of the store of an object's namespace; exits with an error if there is no such profile."""
    profile = require_profile(filename, parse_spec(document["spec"]).profile, profiles)
    return profile.store.for_namespace(document["metadata"].get("namespace", "default"))


def _of_model(model: str, profiles: Mapping[str, Profile]) -> tuple[StoreLocation, str]:
    """Store and name of a model."""

    def parse() -> tuple[StoreLocation, str]:
        from edgetune_jobs.publishing.addresses import ModelAddress, parse_address

        address = parse_address(model)
        if not isinstance(address, ModelAddress):
            fail(f"{model} is not a model: give …/models/NAME{meant_filename(model)}", ExitStatus.UNUSABLE_INPUT)
        return location_of(address.root, profiles), address.name

    return call_jobs(parse)


def location_of(root: str, profiles: Mapping[str, Profile]) -> StoreLocation:
    """Location of a store with the settings of the profile that it belongs to, or with AWS's defaults."""
    if not profiles:
        return StoreLocation(uri=root)
    stores = [
        profile.store for profile in profiles.values() if f"{root}/".startswith(f"{profile.store.uri.rstrip('/')}/")
    ]
    if not stores:
        places = ", ".join(sorted({profile.store.uri for profile in profiles.values()}))
        fail(f"{root} is not in the store of any profile; the profiles' stores are {places}", ExitStatus.UNUSABLE_INPUT)
    store = max(stores, key=lambda each: len(each.uri))
    return store.for_namespace("").model_copy(update={"uri": root})


def open_store(location: StoreLocation) -> "Store":
    """The store at a location, with the credentials of this process."""
    from edgetune_jobs.store.access import StorageAccess

    return StorageAccess(location, credentials_folder=None).open_store()


def call_jobs(call: Callable[[], Answer]) -> Answer:
    """Result of a call into the jobs' code; exits with its message if it fails."""
    from edgetune_jobs.errors import StageError

    try:
        return call()
    except StageError as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
    except ModuleNotFoundError as error:
        fail(
            f"this command needs {error.name}, which is not installed here: in a checkout of Edgetune, "
            "`pip install '.[jobs]'` installs all libraries that it needs",
            ExitStatus.UNUSABLE_INPUT,
        )
    except OSError as error:
        fail(": ".join(filter(None, (error.filename, error.strerror or str(error)))), ExitStatus.UNUSABLE_INPUT)


def _console() -> SafeConsole:
    return SafeConsole(highlight=False)
