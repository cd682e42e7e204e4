"""The run of a version, as a store has it."""

from edgetune_contract.request import Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting.run_record import RunRecord, Usage, origins_of, read_run
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.store import DamagedModel, Store


def read_stored_run(store: Store, document: VersionDocument, usage: Usage | None = None) -> RunRecord:
    """Everything that a store has about the run of a version.

    Raises:
        AccessDenied, TransientError: the store cannot be read.
    """
    manifests: dict[Stage, Manifest] = {}
    for stage, origin in origins_of(document).items():
        try:
            manifest = read_manifest(store, stage, origin.digest)
        except DamagedModel:
            continue  # the report says that it lacks the manifest; `edgetune verify` says why
        if manifest is not None:
            manifests[stage] = manifest
    return read_run(document, manifests, lambda key: content.data if (content := store.read(key)) else None, usage)
