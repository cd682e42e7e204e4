"""Inputs of a stage: outputs of earlier stages as local folders, or models that are read in place."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from edgetune_contract import digest
from edgetune_contract.pipeline import BASE, BASE_SCORES, MERGED, inputs_of, maker_of
from edgetune_contract.request import FileEntry, Manifest, Request, Resolved
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import BASE_FIELD, HOW_TO_RETRY, InvalidInput
from edgetune_jobs.models.folder import ModelFolder, SourceModelFolder, StoredModelFolder, artifact_label, base_label
from edgetune_jobs.models.weights import used_files
from edgetune_jobs.runtime.base_copies import fetch_mirror, find_mirror, mirror_uri
from edgetune_jobs.stage import BASE_SCORES_FILE, Progress
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.store.cached_source import CachedSource, RemoteSource, StoredSource
from edgetune_jobs.store.manifests import find_artifact, read_manifest
from edgetune_jobs.store.model_cache import ModelCache
from edgetune_jobs.store.sources import Source
from edgetune_jobs.store.store import DamagedObject, Store, how_to_recreate, uri_of
from edgetune_jobs.tensors.text_model import is_multimodal


def digests_of_run(request: Request, resolved: Resolved) -> dict[Stage, str]:
    """Digests of all stages of the run that a request belongs to; no merge without merge.keep."""
    parameters = request.parameters
    prepared = digest.prepared_digest(parameters, resolved)
    return {Stage.PREPARE: prepared, **digest.stage_digests(parameters, resolved, request.name)}


class InputGatherer:
    """Fetches the inputs of one stage. Inputs in local folders are used in place and never changed."""

    def __init__(
        self,
        request: Request,
        resolved: Resolved,
        access: StorageAccess,
        store: Store,
        progress: Progress,
        folder: Path,
        cache: ModelCache | None = None,
    ) -> None:
        """
        Args:
            request: of the stage.
            resolved: digests of base and data.
            access: opens the base model.
            store: the store.
            progress: reports what is fetched.
            folder: for copies of the inputs.
            cache: of base models on this node.
        """
        self._request = request
        self._resolved = resolved
        self._access = access
        self._store = store
        self._progress = progress
        self._folder = folder
        self._cache = cache
        self._names = inputs_of(request.stage, request.parameters)
        self._digests = digests_of_run(request, resolved)

    def gather(self) -> dict[str, Path]:
        """Folders by input name, without those of `models`.

        Raises:
            InvalidInput: an input is missing, or the base model has changed since prepare.
            DamagedObject: an input differs from its manifest.
        """
        inputs, folder = {}, self._folder
        for name in self._names:
            if self._is_read_in_place(name):
                continue
            self._progress.say(f"fetching {name}")
            inputs[name] = self._base(folder / name) if name == BASE else self._artifact(name, folder / name)
        if self._request.stage is Stage.EVALUATE:
            inputs |= self._base_scores(folder / BASE_SCORES)
        return inputs

    def models(self) -> dict[str, ModelFolder]:
        """Models that the stage reads in place, in S3; only their small files are copied.

        Raises:
            InvalidInput: an input is missing, or the base model has changed since prepare.
        """
        names = [name for name in self._names if self._is_read_in_place(name)]
        return {name: self._model_in_place(name, self._folder / name) for name in names}

    def base_copy_uri(self) -> str | None:
        """URI of the copy of the base that the stage reads, if it is a copy in the store."""
        return mirror_uri(self._store, self._resolved.base) if self._is_base_copied else None

    def _is_read_in_place(self, name: str) -> bool:
        """Whether an input is a model in S3 that is streamed, because this machine may lack the disk space for it."""
        if self._request.stage not in (Stage.MERGE, Stage.QUANTIZE) or name not in (BASE, MERGED):
            return False
        base = self._request.parameters.base_model
        is_in_store = name != BASE or self._is_base_copied
        uri = self._store.uri if is_in_store else base.uri
        return uri.startswith("s3://")

    def _model_in_place(self, name: str, target: Path) -> ModelFolder:
        base = self._request.parameters.base_model
        if name == BASE and not self._is_base_copied:
            return SourceModelFolder(self._opened(self._unchanged_base), base_label(base.uri))
        if name == BASE and self._cache is not None:
            cached = self._opened(self._mirror(target))

            def fetch_cached(entries: Sequence[FileEntry]) -> Path:
                return cached.fetch([entry.path for entry in entries])

            return StoredModelFolder(cached, base_label(base.uri), cached.files, fetch_cached)
        if name == BASE:
            key, files = find_mirror(self._store, self._resolved.base, base.uri)
            label = base_label(base.uri)
        else:
            key, files = self._find_artifact(name)
            label = artifact_label(name, uri_of(self._store, key))

        def fetch(entries: Sequence[FileEntry]) -> Path:
            return self._store.fetch_folder(key, entries, target)

        source = self._access.open_model(uri_of(self._store, key), target)
        return StoredModelFolder(source, label, files, fetch)

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a stage of this run.

        Raises:
            InvalidInput: there is none.
        """
        manifest = read_manifest(self._store, stage, self._digests[stage])
        if manifest is None:
            missing = uri_of(self._store, digest.manifest_key(stage, self._digests[stage]))
            raise InvalidInput(f"{missing} is missing: {HOW_TO_RETRY} to run the stage {stage} again")
        return manifest

    def _find_artifact(self, name: str) -> tuple[str, tuple[FileEntry, ...]]:
        """Key of an artifact's folder, and its files with paths relative to it."""
        stage = maker_of(name)
        found = find_artifact(self.read_stage(stage), name)
        folder = digest.stage_key(stage, self._digests[stage])
        if found is None:
            manifest = uri_of(self._store, digest.manifest_key(stage, self._digests[stage]))
            raise InvalidInput(f"{manifest} has no artifact {name!r}: {how_to_recreate(self._store, folder)}")
        return f"{folder}/{found.folder}", found.files

    def _artifact(self, name: str, target: Path) -> Path:
        key, files = self._find_artifact(name)
        try:
            return self._store.fetch_folder(key, files, target)
        except DamagedObject as error:
            stage = maker_of(name)
            folder = digest.stage_key(stage, self._digests[stage])
            raise DamagedObject(f"{error}; {how_to_recreate(self._store, folder)}") from error

    def _base(self, target: Path) -> Path:
        base = self._request.parameters.base_model
        if self._is_base_copied and (self._cache is None or not self._store.uri.startswith("s3://")):
            return fetch_mirror(self._store, self._resolved.base, base.uri, target)
        source = self._mirror(target) if self._is_base_copied else self._unchanged_base
        return source.fetch(used_files(SourceModelFolder(source, base_label(base.uri))))

    @cached_property
    def _is_base_copied(self) -> bool:
        """Whether prepare has copied the base to the store: a model of the hub, or a text part."""
        return self._request.parameters.base_model.is_on_hub or is_multimodal(self._unchanged_base)

    def _opened(self, source: Source) -> Source:
        """The source, with all files that a stage may read open in the cache, if there is one."""
        if isinstance(source, CachedSource):
            self._progress.say("reading base through the cache")
            source.open(used_files(SourceModelFolder(source, source.uri)))
        return source

    def _mirror(self, target: Path) -> Source:
        """The store's copy of the base, through the cache."""
        key, files = find_mirror(self._store, self._resolved.base, self._request.parameters.base_model.uri)
        ranges = self._access.open_model(uri_of(self._store, key), target)
        return self._cached(StoredSource(ranges, self._store, key, files, target), target)

    def _cached(self, source: Source, target: Path) -> Source:
        if self._cache is None or not isinstance(source, RemoteSource):
            return source
        return CachedSource(source, self._cache, self._request.store.endpoint, target)

    @cached_property
    def _unchanged_base(self) -> Source:
        base, target = self._request.parameters.base_model, self._folder / "base-source"
        source = self._access.open_base(base, target)
        if source.digest != self._resolved.base:
            raise InvalidInput(
                f"{BASE_FIELD}.uri: {base.uri} has changed since prepare: its digest was {self._resolved.base} and is "
                f"now {source.digest}; restore it and pin it with {BASE_FIELD}.revision, or ask for a retry to train "
                "on the new one"
            )
        return self._cached(source, target)

    def _base_scores(self, target: Path) -> dict[str, Path]:
        key = digest.base_scores_key(digest.base_scores_digest(self._request.parameters, self._resolved))
        content = self._store.read(key)
        if content is None:
            return {}
        target.mkdir(parents=True)
        (target / BASE_SCORES_FILE).write_bytes(content.data)
        return {BASE_SCORES: target}
