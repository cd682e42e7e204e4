"""Access to storage: from URIs and credentials to stores and sources."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from edgetune_contract.pipeline import BASE
from edgetune_contract.request import Request, StoreLocation
from edgetune_contract.spec import BaseModelSpec, DataSource
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.store.s3.traffic import Traffic
from edgetune_jobs.store.sources.source import FolderSource, Source, SourceKind, check_pin
from edgetune_jobs.store.store import Store


@dataclass(frozen=True)
class StorageAccess:
    """Opens stores and sources with the credentials of this process."""

    location: StoreLocation
    credentials_folder: Path | None
    traffic: Traffic = field(default_factory=Traffic)
    """Bytes that the S3 client has moved so far."""

    @cached_property
    def s3_client(self) -> Any:
        """A boto3 S3 client, created on first use.

        Raises:
            AccessDenied: the credentials are incomplete.
        """
        from edgetune_jobs.store.s3.client import create_client, find_credentials

        client = create_client(self.location, find_credentials(self.credentials_folder))
        self.traffic.count(client)
        return client

    def open_store(self) -> Store:
        """The request's store."""
        if self.location.uri.startswith("file://"):
            from edgetune_jobs.store.folder_store import LocalFolderStore

            return LocalFolderStore(self.location.uri)
        from edgetune_jobs.store.s3.store import S3Store

        return S3Store(self.location.uri, self.s3_client)

    def open_base(self, base: BaseModelSpec, target: Path) -> Source:
        """The base model; files are fetched to `target`, except those of a local folder.

        Raises:
            InvalidInput: there is nothing at its URI.
        """
        if base.is_on_hub:
            from edgetune_jobs.store.s3.client import read_secret
            from edgetune_jobs.store.sources.hub_source import HubSource

            token = read_secret(self.credentials_folder, "HF_TOKEN") if self.credentials_folder else None
            return HubSource(base.uri, base.revision, BASE_FIELD, token, target)
        return self.open_model(base.uri, target)

    def open_model(self, uri: str, target: Path) -> Source:
        """A model in a folder or in S3.

        Raises:
            InvalidInput: there is nothing at the URI.
        """
        return self._open(uri, BASE_FIELD, SourceKind.MODEL, target)

    def open_data(self, data: DataSource, field: str, target: Path) -> Source:
        """A data set; `field` is its path in the spec.

        Raises:
            InvalidInput: there is nothing at its URI.
        """
        return self._open(data.uri, field, SourceKind.DATA, target)

    def _open(self, uri: str, field: str, kind: SourceKind, target: Path) -> Source:
        if uri.startswith("s3://"):
            from edgetune_jobs.store.s3.source import S3Source

            return S3Source(uri, field, kind, self.s3_client, target)
        return FolderSource(uri, field, kind)


def open_sources(access: StorageAccess, request: Request, folder: Path) -> dict[str, Source]:
    """The sources of prepare: base, train, and eval if the spec has one, checked against the spec's pins.

    Raises:
        InvalidInput: there is nothing at a URI, of which all are named, or the content is not the pinned one.
    """
    base, dataset = request.parameters.base_model, request.parameters.dataset
    openers: dict[str, Callable[[], Source]] = {BASE: lambda: access.open_base(base, folder / BASE)}
    fields, pins = {BASE: BASE_FIELD}, {BASE: "" if base.is_on_hub else base.revision}
    for name, data in (("train", dataset.train), ("eval", dataset.eval)):
        if data is not None:
            fields[name], pins[name] = f"spec.dataset.{name}", data.revision
            openers[name] = partial(access.open_data, data, fields[name], folder / name)
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for name, opener in openers.items():
        try:
            sources[name] = opener()
        except InvalidInput as error:
            problems.append(str(error))
    if problems:
        raise InvalidInput("\n".join(problems))
    for name, source in sources.items():
        check_pin(source, fields[name], pins[name])
    return sources
