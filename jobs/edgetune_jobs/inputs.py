"""What the stages before a stage have left for it, as local folders."""

from collections.abc import Mapping
from pathlib import Path

from edgetune_contract import digest
from edgetune_contract.request import Manifest, Request, Resolved
from edgetune_contract.spec import BaseModelSpec, EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.connect import BASE_FIELD, Access
from edgetune_jobs.errors import HOW_TO_RETRY, InvalidInput
from edgetune_jobs.mirror import fetch_mirror
from edgetune_jobs.stage import Progress
from edgetune_jobs.store import DamagedObject, Store, files_below, how_to_make_anew, read_model, uri_of

BASE = "base"
BASE_SCORES = "base-scores"
SCORES_FILE = "scores.json"

_MAKERS: Mapping[str, Stage] = {
    "prepared": Stage.PREPARE,
    "adapter": Stage.TRAIN,
    "merged": Stage.MERGE,
    **{edge_format.artifact: Stage.QUANTIZE for edge_format in EdgeFormat},
}


def input_names(request: Request) -> tuple[str, ...]:
    """Names of the inputs that a request's stage gets, but for the base's scores, which may not be known yet."""
    keep = request.parameters.merge.keep
    match request.stage:
        case Stage.TRAIN:
            return (BASE, "prepared")
        case Stage.MERGE:
            return (BASE, "adapter")
        case Stage.QUANTIZE:
            return ("merged",) if keep else (BASE, "adapter")
        case Stage.EVALUATE:
            edges = (edge_format.artifact for edge_format in request.parameters.quantization.formats)
            return (BASE, "prepared", "adapter", *(("merged",) if keep else ()), *edges)
        case _:
            return ()


def digests_of_run(request: Request, resolved: Resolved) -> dict[Stage, str]:
    """Digests of all stages of the run that a request belongs to; no merge without merge.keep."""
    parameters = request.parameters
    prepared = digest.prepared_digest(parameters, resolved)
    return {Stage.PREPARE: prepared, **digest.stage_digests(parameters, resolved, request.name)}


def read_manifest(store: Store, stage: Stage, stage_digest: str) -> Manifest | None:
    """Manifest of a stage, or None when the stage is not done."""
    return read_model(store, digest.manifest_key(stage, stage_digest), Manifest)


class InputGatherer:
    """Fetches the inputs of one stage. Inputs in a local folder stay where they are and are read-only."""

    def __init__(self, request: Request, resolved: Resolved, access: Access, store: Store, progress: Progress) -> None:
        self._request = request
        self._resolved = resolved
        self._access = access
        self._store = store
        self._progress = progress
        self._digests = digests_of_run(request, resolved)

    def gather(self, folder: Path) -> dict[str, Path]:
        """Folders by input name; what has to be copied goes below `folder`.

        Raises:
            InvalidInput: an input is missing, or the base model is not the one that prepare saw.
            DamagedObject: an input is not what its manifest says.
        """
        inputs = {}
        for name in input_names(self._request):
            self._progress.say(f"fetching {name}")
            inputs[name] = self._base(folder / name) if name == BASE else self._artifact(name, folder / name)
        if self._request.stage is Stage.EVALUATE:
            inputs |= self._base_scores(folder / BASE_SCORES)
        return inputs

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a stage of this run.

        Raises:
            InvalidInput: there is none.
        """
        manifest = read_manifest(self._store, stage, self._digests[stage])
        if manifest is None:
            missing = uri_of(self._store, digest.manifest_key(stage, self._digests[stage]))
            raise InvalidInput(f"{missing} is missing: {HOW_TO_RETRY}, and the stage {stage} runs again")
        return manifest

    def _artifact(self, name: str, target: Path) -> Path:
        stage = _MAKERS[name]
        files = self.read_stage(stage).files
        folder = digest.stage_key(stage, self._digests[stage])
        parts = (entry.path.split("/") for entry in files)
        attempt = next((attempt for attempt, *below in parts if below[:1] == [name]), None)
        if attempt is None:
            message = f"the manifest of the stage {stage} names no artifact {name}"
            raise InvalidInput(f"{message}: {how_to_make_anew(self._store, folder)}")
        try:
            return self._store.fetch_folder(
                f"{folder}/{attempt}/{name}", files_below(files, f"{attempt}/{name}"), target
            )
        except DamagedObject as error:
            raise DamagedObject(f"{error}; {how_to_make_anew(self._store, folder)}") from error

    def _base(self, target: Path) -> Path:
        base = self._request.parameters.base_model
        if base.uri.startswith("hf://"):
            return fetch_mirror(self._store, self._resolved.base, base.uri, target)
        return self._unchanged_base(base, target)

    def _unchanged_base(self, base: BaseModelSpec, target: Path) -> Path:
        source = self._access.open_base(base, target)
        if source.digest != self._resolved.base:
            raise InvalidInput(
                f"{BASE_FIELD}.uri: {base.uri} has changed since it was prepared: its digest was {self._resolved.base} "
                f"and is {source.digest}; pin it by {BASE_FIELD}.revision, or ask for a retry to train on the new one"
            )
        return source.fetch([entry.path for entry in source.files])

    def _base_scores(self, target: Path) -> dict[str, Path]:
        key = digest.base_scores_key(digest.base_scores_digest(self._request.parameters, self._resolved))
        content = self._store.read(key)
        if content is None:
            return {}
        target.mkdir(parents=True)
        (target / SCORES_FILE).write_bytes(content.data)
        return {BASE_SCORES: target}
