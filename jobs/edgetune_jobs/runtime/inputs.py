"""Inputs of a stage: outputs of earlier stages as local folders, or models that are read in place."""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from edgetune_contract import digest
from edgetune_contract.pipeline import BASE, BASE_SCORES, MERGED, inputs_of, maker_of
from edgetune_contract.request import FileEntry, Manifest, Request, Resolved
from edgetune_contract.results.candidates import PossibleFormat, formats_to_write
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_jobs.errors import BASE_FIELD, HOW_TO_RETRY, InvalidInput
from edgetune_jobs.evaluation.row_answers import ANSWERS
from edgetune_jobs.models.folder import ModelFolder, SourceModelFolder, StoredModelFolder, artifact_label, base_label
from edgetune_jobs.models.quantization.gguf_adapter import check_base
from edgetune_jobs.models.weights import used_files
from edgetune_jobs.runtime.base_copies import fetch_mirror, find_mirror, mirror_uri
from edgetune_jobs.stage import BASE_SCORES_FILE, Progress
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.store.artifact_uses import Use, Uses, is_in_use
from edgetune_jobs.store.manifests import find_artifact, read_manifest
from edgetune_jobs.store.sources.cached_source import CachedSource, RemoteSource, StoredSource
from edgetune_jobs.store.sources.model_cache import ModelCache
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.store.store import DamagedObject, Store, how_to_recreate, uri_of
from edgetune_jobs.tensors.text_model import is_multimodal


def digests_of_run(request: Request, resolved: Resolved) -> dict[Stage, str]:
    """Digests of all stages of the run that a request belongs to; no merge without merge.keep."""
    parameters = request.parameters
    prepared = digest.prepared_digest(parameters, resolved)
    return {Stage.PREPARE: prepared, **digest.stage_digests(parameters, resolved, request.name)}


def with_formats(
    request: Request, resolved: Resolved, possible: Sequence[PossibleFormat], store: Store, uses: Uses
) -> Resolved:
    """The inputs of a run with the formats that its stage quantize writes, where the spec has formats Auto.

    If the store has the output of a quantize that has written these formats and larger ones, as for an earlier spec
    with a larger limit, that one is used: a tighter limit writes nothing again.

    Args:
        request: of prepare.
        resolved: the digests of base and data.
        possible: the formats that the base can be written in, largest first.
        store: the store.
        uses: the object's marks of use: each output is marked before it is looked for. A new mark of one that is not
            there is removed again: the object may never use it.
    """

    def found(formats: tuple[EdgeFormat, ...]) -> Resolved:
        return resolved.model_copy(update={"possible": tuple(possible), "formats": formats})

    def is_written(formats: tuple[EdgeFormat, ...]) -> bool:
        quantize = digests_of_run(request, found(formats))[Stage.QUANTIZE]
        use = Use(Stage.QUANTIZE, quantize)
        was_marked = is_in_use(store, use, request.name)
        uses.mark(use)
        is_there = read_manifest(store, use.stage, use.digest) is not None
        if not is_there and not was_marked:
            uses.forget(use)
        return is_there

    limit = request.parameters.evaluation.gates.max_edge_bytes
    return found(formats_to_write(possible, None if limit is None else parse_bytes(limit), is_written))


class FetchedInputs(Mapping[str, Path]):
    """Folders of inputs, of which some are fetched when they are looked up first."""

    def __init__(self, present: Mapping[str, Path], others: Collection[str], fetch: Callable[[str], Path]) -> None:
        """
        Args:
            present: folders that are here.
            others: names of the other inputs.
            fetch: fetches one of them; its folder.
        """
        self._folders, self._fetch = dict(present), fetch
        self._names = (*present, *others)

    def __getitem__(self, name: str) -> Path:
        if name in self._names and name not in self._folders:
            self._folders[name] = self._fetch(name)
        return self._folders[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
        self._names = inputs_of(request.stage, request.parameters, request.formats)
        self._digests = digests_of_run(request, resolved)

    def gather(self) -> Mapping[str, Path]:
        """Folders by input name, without those of `models`. Candidates of formats Auto are fetched when looked up.

        Raises:
            InvalidInput: an input is missing, or the base model has changed since prepare.
            DamagedObject: an input differs from its manifest.
        """
        inputs: dict[str, Path] = {}
        candidates = self.sizes
        for name in self._names:
            if not self._is_read_in_place(name) and name not in candidates:
                inputs[name] = self._fetch(name)
        if self._request.stage is Stage.EVALUATE:
            inputs |= self._base_scores(self._folder / BASE_SCORES)
        return FetchedInputs(inputs, candidates, self._fetch)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of the candidates of formats Auto, by artifact, which may not all be needed.

        Raises:
            InvalidInput: one is missing.
        """
        if self._request.stage is not Stage.EVALUATE or not self._request.parameters.quantization.is_auto:
            return {}
        names = [each.artifact for each in self._request.formats]
        return {name: sum(entry.bytes for entry in self._find_artifact(name)[1]) for name in names}

    def discard(self, name: str) -> None:
        """Remove the copy of an input, if it is one."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _fetch(self, name: str) -> Path:
        self._progress.say(f"{'fetching' if self._store.uri.startswith('s3://') else 'reading'} {name}")
        target = self._folder / name
        return self._base(target) if name == BASE else self._artifact(name, target)

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
            fetched = self._store.fetch_folder(key, files, target)
            check_base(fetched, files)
            return fetched
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
        scored = digest.base_scores_digest(self._request.parameters, self._resolved)
        content = self._store.read(digest.base_scores_key(scored))
        if content is None:
            return {}
        target.mkdir(parents=True)
        (target / BASE_SCORES_FILE).write_bytes(content.data)
        answers = self._store.read(digest.base_answers_key(scored))
        if answers is not None:
            (target / ANSWERS).write_bytes(answers.data)
        return {BASE_SCORES: target}
