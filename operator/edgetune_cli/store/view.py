"""The store for `edgetune plan --store`. It uses the jobs' code, which is imported when a store is opened."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgetune_cli.planning.figures import EarlierStage
from edgetune_cli.store.drafting.earlier_runs import find_earlier_stages
from edgetune_contract.request import Result, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

if TYPE_CHECKING:
    from edgetune_jobs.store.store import Store


class _OpenedStore:
    """Finished stages and versions of one model in the store."""

    def __init__(self, store: "Store", name: str, sign: bool) -> None:
        self._store = store
        self._name = name
        self._sign = sign

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        from edgetune_jobs.publishing.publisher import read_done_stage

        manifest = read_done_stage(self._store, self._name, stage, digest, self._sign)
        return manifest.result if manifest is not None else None

    def earlier_stages(self, parameters: Parameters) -> Mapping[Stage, EarlierStage]:
        return find_earlier_stages(self._store, parameters)

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


def open_store_view(location: StoreLocation, name: str, sign: bool) -> _OpenedStore:
    """View of the model of this name in the store at this location.

    Args:
        location: of the store.
        name: of the model.
        sign: whether publish signs it, and is done only then.
    """
    from edgetune_jobs.store.access import StorageAccess

    return _OpenedStore(StorageAccess(location, credentials_folder=None).open_store(), name, sign)
