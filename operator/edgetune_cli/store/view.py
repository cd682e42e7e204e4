"""The store for `edgetune plan --store`. It uses the jobs' code, which is imported when a store is opened."""

from typing import TYPE_CHECKING

from edgetune_contract.request import Result, StoreLocation
from edgetune_contract.stages import Stage

if TYPE_CHECKING:
    from edgetune_jobs.store.store import Store


class _OpenedStore:
    """Finished stages and versions of one model in the store."""

    def __init__(self, store: "Store", name: str) -> None:
        self._store = store
        self._name = name

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        from edgetune_jobs.publishing.publisher import read_done_stage

        manifest = read_done_stage(self._store, self._name, stage, digest)
        return manifest.result if manifest is not None else None

    def find_version(self, pin: str) -> str:
        from edgetune_jobs.errors import InvalidInput
        from edgetune_jobs.publishing.versions import Versions

        versions = Versions(self._store, self._name)
        try:
            document = versions.find(pin)
            versions.require_files(document)
        except InvalidInput as error:
            raise LookupError(str(error)) from error
        return document.version


def open_store_view(location: StoreLocation, name: str) -> _OpenedStore:
    """View of the model of this name in the store at this location."""
    from edgetune_jobs.store.access import StorageAccess

    return _OpenedStore(StorageAccess(location, credentials_folder=None).open_store(), name)
