"""`edgetune pull`: follow a model's latest.json on a device."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import unquote

import typer
from pydantic import ValidationError

from edgetune_cli.device.folder import DeviceFolder, name_of
from edgetune_cli.device.origins import Origin, PullError, open_origin, read_whole
from edgetune_cli.device.signatures import (
    Signatures,
    SignedVersion,
    fetch_signatures,
    no_signature,
    read_keys,
    require_signed,
)
from edgetune_cli.device.transfer import fetch, require_space
from edgetune_cli.durations import parse_duration
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import say
from edgetune_contract.digest import pointer_key, version_key
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.units import format_bytes
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.gguf_adapter import HEAD_BYTES, wrong_base
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE
from edgetune_jobs.store.files import checked_relative, file_list_digest

_ADDRESS = re.compile(
    r"(?P<root>(?:s3|https?|file)://.+?)/(?P<key>models/[^/]+/(?:latest|versions/[0-9a-f]{64})\.json)"
)
# A sleep of much more overflows.
_LONGEST_INTERVAL = 9_999 * 86_400
# Devices that were started together shall not ask together for ever.
_JITTER = 0.25
_RETRY_SECONDS = 60
_MOST_DOCUMENT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Model:
    """What a device follows."""

    origin: Origin
    key: str
    edge_format: EdgeFormat | None


def pull(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="URI DIR",
            help="…/models/NAME/latest.json or …/versions/DIGEST.json in a store, as s3://, https://, file:// or a "
            "path, and the device's folder. With --rollback only DIR.",
            show_default=False,
        ),
    ],
    edge_format: Annotated[
        EdgeFormat | None,
        typer.Option("--format", help="Format of the version's edge model; default: the first.", show_default=False),
    ] = None,
    watch: Annotated[
        str,
        typer.Option(help="Look for a new version again and again, such as every 10m, 1h or 30s.", show_default=False),
    ] = "",
    on_change: Annotated[
        str,
        typer.Option(
            help="Shell command to run when DIR/current has changed. EDGETUNE_MODEL is the folder of the model's "
            "files, EDGETUNE_VERSION its version.",
            show_default=False,
        ),
    ] = "",
    verify_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="PEM file with a public key, one of which must have signed the version; repeat it. DIR keeps "
            "these keys, instead of those that it has: later pulls require a signature too.",
            show_default=False,
        ),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the previous version, without a network.")
    ] = False,
) -> None:
    """Keep a model on a device: download what has changed, verify it, and switch DIR/current to it at once.

    Only files that DIR does not have are downloaded; a download that was cut continues. Nothing becomes visible before
    all its bytes are verified, and the current version stays until then. The previous version is kept.
    """
    if len(places) != (1 if rollback else 2):
        wanted = "DIR with --rollback" if rollback else "URI and DIR"
        fail(f"give {wanted}: {len(places)} given", ExitStatus.UNUSABLE_INPUT)
    if not places[-1]:
        fail("DIR is empty: name the device's folder", ExitStatus.UNUSABLE_INPUT)
    if rollback and (watch or edge_format):
        fail("--rollback takes neither --watch nor --format", ExitStatus.UNUSABLE_INPUT)
    interval = _seconds(watch)
    try:
        device = DeviceFolder(Path(places[-1]), read_keys(verify_key or ()))
        if rollback:
            with device.locked():
                say(f"{device.folder}/current is {_roll_back(device)} again")
            _announce(device, on_change)
            return
        model = _parse(places[0], edge_format)
    except PullError as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
    if interval:
        _watch(device, model, interval, on_change)
    try:
        say(_pull_once(device, model))
        _announce(device, on_change)
    except PullError as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def _watch(device: DeviceFolder, model: _Model, interval: float, on_change: str) -> NoReturn:
    """Pull for ever; what has not changed is said once."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitStatus.OK))  # the first process of a container ignores it
    said = ""
    while True:
        pause = interval
        try:
            if (found := _pull_once(device, model)) != said:
                say(found)
                said = found
            _announce(device, on_change)
        except PullError as error:
            say(str(error), fg=typer.colors.RED, err=True)
            pause = min(interval, _RETRY_SECONDS)
        time.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret depends on it


def _pull_once(device: DeviceFolder, model: _Model) -> str:
    """Make the version at the address current; what there is to say about it."""
    with device.locked():
        return _follow(device, model)


def _seconds(interval: str) -> float:
    seconds = parse_duration(interval) or 0.0
    if interval and not 0 < seconds <= _LONGEST_INTERVAL:
        fail(f"--watch {interval}: give a time such as 30s, 10m, 1h or 1d", ExitStatus.UNUSABLE_INPUT)
    return seconds


def _parse(address: str, edge_format: EdgeFormat | None) -> _Model:
    uri = address if "://" in address else Path(address).absolute().as_uri()
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise PullError(
            f"{address!r} is not the address of a model: give …/models/NAME/latest.json or …/versions/DIGEST.json, as "
            "s3://, https://, file:// or a path"
        )
    return _Model(open_origin(match["root"]), unquote(match["key"]), edge_format)


def _roll_back(device: DeviceFolder) -> str:
    """Make the previous version current again, if it is signed where that is required; its name."""
    trusted, name = device.trusted_keys, device.previous
    if trusted and name:
        version, signatures = device.signed_version(name), device.signatures(name)
        if signatures is None:
            raise no_signature(f"{device.path(name)}.sig", version.document)
        require_signed(version, signatures, str(device.folder), trusted)
        device.keep_keys()
    return device.roll_back()


def _follow(device: DeviceFolder, model: _Model) -> str:
    """Make the version at the address current, unless a rollback left it; what there is to say about it."""
    trusted = device.trusted_keys
    document, data = _read_document(model)
    edge = _choose(model, document)
    version, name = SignedVersion(document, data, edge), name_of(document, edge)
    signatures = _signatures(device, model, version, name, trusted) if trusted else None
    device.keep_keys()
    up_to_date = f"{device.folder}/current is up to date: version {document.version[:12]}"
    if name == device.current and device.is_kept(name, data, signatures) and device.has_sizes(name, edge):
        return up_to_date
    if name == device.rolled_back:
        return (
            f"{device.folder}/current stays {device.current}: a rollback left version {document.version[:12]}, which "
            f"{model.origin.uri}/{model.key} still names; another rollback takes it again"
        )
    received = 0
    if device.is_whole(name, edge):
        device.keep(name, data, signatures)
        if name == device.current:
            return up_to_date
    else:
        received = _receive(device, model, document, edge)
        device.install(name, version, signatures)
    device.switch(name)
    size = format_bytes(sum(each.bytes for each in edge.all_files))
    return (
        f"{device.folder}/current is version {document.version[:12]}, {edge.artifact.name}: {format_bytes(received)} "
        f"of {size} downloaded"
    )


def _signatures(device: DeviceFolder, model: _Model, version: SignedVersion, name: str, trusted: bytes) -> Signatures:
    """The signatures of a version, which hold: those on the device, or else those at the origin."""
    kept = device.signatures(name)
    if kept is not None:
        with suppress(PullError):  # of an older document, by an older key, or damaged: the origin's may hold
            require_signed(version, kept, str(device.folder), trusted)
            return kept
    return fetch_signatures(model.origin, version, trusted)


def _read_document(model: _Model) -> tuple[VersionDocument, bytes]:
    """The document at the address, and its bytes."""
    place, data = f"{model.origin.uri}/{model.key}", read_whole(model.origin, model.key, _MOST_DOCUMENT_BYTES)
    try:
        document = VersionDocument.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise PullError(f"{place} has the unknown field {field!r}: update edgetune on this device") from error
        raise PullError(": ".join(filter(None, (f"{place} is damaged", field, first["msg"])))) from error
    if model.key not in (pointer_key(document.model), version_key(document.model, document.version)):
        belongs = f"version {document.version} of {document.model}"
        raise PullError(f"{place} is damaged: it is the document of {belongs}; run `edgetune verify` on it")
    if not document.published:
        raise PullError(f"{place} was refused, and is not for devices: {' '.join(document.refusals)}")
    return document, data


def _choose(model: _Model, document: VersionDocument) -> EdgeModel:
    """The edge model in the wanted format, whose list of files is intact."""
    place = f"{model.origin.uri}/{model.key}"
    try:
        edge = document.edge_in(model.edge_format)
    except LookupError as error:
        raise PullError(f"{place} {error}") from None
    name = edge.artifact.name
    if file_list_digest(edge.files) != edge.artifact.sha256:
        raise PullError(f"{place} is damaged: the list of files of {name} was changed")
    for each in edge.all_files:
        try:
            checked_relative(each.path)
        except InvalidInput:
            raise PullError(f"{place} has the file name {each.path!r}, which leaves its folder") from None
    if len({each.path for each in edge.all_files}) < len(edge.all_files):
        raise PullError(f"{place} is damaged: {name} has two files of the same name")
    return edge


def _receive(device: DeviceFolder, model: _Model, document: VersionDocument, edge: EdgeModel) -> int:
    """Get all files of an edge model, and its card, into `device.incoming`; the bytes received."""
    device.discard_incoming(keep={each.sha256 for each in edge.all_files})
    missing: dict[str, tuple[str, FileEntry]] = {
        entry.sha256: (key, entry)
        for key, entry in document.keys_of(edge)
        if not device.reuse(entry, device.incoming / entry.sha256)
    }
    there = sum((device.incoming / each).stat().st_size for each in missing if (device.incoming / each).exists())
    require_space(device.incoming, sum(entry.bytes for _, entry in missing.values()) - there)
    received = 0
    for digest, (key, entry) in missing.items():
        received += fetch(model.origin, key, entry, device.incoming / digest, time.sleep)
    _check_base(device, model, edge)
    return received


def _check_base(device: DeviceFolder, model: _Model, edge: EdgeModel) -> None:
    """Refuse an adapter in `device.incoming` that is not for the base in the same list of files.

    Raises:
        PullError: it is for another base.
    """
    for entry in edge.files:
        if entry.path == ADAPTER_FILE:
            with (device.incoming / entry.sha256).open("rb") as file:
                problem = wrong_base(file.read(HEAD_BYTES), edge.files)
            if problem:
                raise PullError(f"{model.origin.uri}/{model.key} is damaged: {problem}; run `edgetune verify` on it")


def _announce(device: DeviceFolder, command: str) -> None:
    """Run the command of --on-change once for a change, also if the device was cut off in between.

    The folder is not locked meanwhile: the command may roll back.

    Raises:
        PullError: the command failed; it is run again with the next pull.
    """
    with device.locked():
        name = device.unannounced
        version = device.document(name).version if name and command else ""
    if not name:
        return
    if command:
        variables = {"EDGETUNE_MODEL": str(device.path(name).resolve()), "EDGETUNE_VERSION": version}
        # The command is the user's own, and may use a shell's redirections.
        code = subprocess.run(command, shell=True, check=False, env={**os.environ, **variables}).returncode  # noqa: S602
        if code:
            raise PullError(
                f"--on-change ended with exit code {code}, and is run again with the next pull; `edgetune pull "
                f"--rollback {device.folder}` goes back to the previous version"
            )
    with device.locked():
        device.announced(name)
