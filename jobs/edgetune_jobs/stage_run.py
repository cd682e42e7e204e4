"""One stage around its body:

request ── manifest there? ── yes ──────────────────────────────► answer at once
                │ no
                └─► store writable? ► inputs ► body ► artifacts ► manifest ► answer
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from edgetune_contract import digest
from edgetune_contract.request import MAX_RESULT_BYTES, Manifest, Publication, Request, Resolved, Result
from edgetune_contract.stages import Stage
from edgetune_jobs.checkpoint import StoreCheckpoints
from edgetune_jobs.connect import Access, open_sources
from edgetune_jobs.errors import InvalidInput, TransientFault
from edgetune_jobs.inputs import BASE_SCORES, SCORES_FILE, InputGatherer, digests_of_run, read_manifest
from edgetune_jobs.mirror import mirror_model, mirror_uri
from edgetune_jobs.outputs import Attempt, library_versions, probe
from edgetune_jobs.progress import LineProgress, TrainingMetrics
from edgetune_jobs.publisher import Pointer, StorePublisher
from edgetune_jobs.settings import Settings
from edgetune_jobs.signals import StopSignals
from edgetune_jobs.stage import Source, StageContext, StageOutput
from edgetune_jobs.store import Conflict

StageBody = Callable[[StageContext], StageOutput]
Recheck = Callable[[StageContext, Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class StageCode:
    """What a stage's module offers."""

    run: StageBody
    recheck: Recheck | None = None
    """Looks again, when the stage is done already, at what depends on fields that its digest does not cover: from the
    stage's metrics to those that changed."""


class StageRun:
    """One attempt at one stage. Used once."""

    def __init__(
        self,
        request: Request,
        settings: Settings,
        signals: StopSignals,
        stream: TextIO,
        load_code: Callable[[Stage], StageCode],
        folder: Path,
    ) -> None:
        """Open the store; nothing is asked for yet.

        Args:
            request: what to do.
            settings: the process's environment.
            signals: what ends the stage before its time.
            stream: progress goes to it as JSON lines.
            load_code: gives the functions that do the stage's work.
            folder: everything temporary goes below it.
        """
        self._started = time.monotonic()
        self._request = request
        self._signals = signals
        self._load_code = load_code
        self._folder = folder
        self._metrics_port = settings.metrics_port if request.stage is Stage.TRAIN else 0
        self._metrics = TrainingMetrics(request.namespace, request.name) if self._metrics_port else None
        self._progress = LineProgress(request.stage, stream, self._metrics)
        self._access = Access(request.store, settings.credentials_folder)
        self._store = self._access.open_store()

    def run(self) -> Result:
        """The stage's result, from its manifest if it was done before.

        Raises:
            StageError: the stage cannot be done.
            Stopped: a signal has ended it.
        """
        sources: Mapping[str, Source] = {}
        if self._request.stage is Stage.PREPARE:
            self._progress.say("looking at the base model and the data")
            sources = open_sources(self._access, self._request, self._folder / "sources")
        resolved = self._resolve(sources)
        self._digests = digests_of_run(self._request, resolved)
        self._check_digest()
        standing = self._read_manifest()
        if standing is not None:
            self._mirror_base(sources)
            return self._answer(self._recheck(standing, sources, resolved), resolved, cached=True)
        return self._do(sources, resolved)

    def _resolve(self, sources: Mapping[str, Source]) -> Resolved:
        if self._request.stage is not Stage.PREPARE:
            if self._request.resolved is None:
                raise InvalidInput(f"the request for {self._request.stage} lacks `resolved`, which prepare finds out")
            return self._request.resolved
        evaluation = sources.get("eval")
        return Resolved(
            base=sources["base"].digest,
            train=sources["train"].digest,
            eval=evaluation.digest if evaluation else None,
        )

    def _check_digest(self) -> None:
        """A request whose digest is not that of its own parameters would put one thing under another's name."""
        request = self._request
        expected = self._digests.get(request.stage)
        if request.stage is Stage.PREPARE:
            expected = digest.prepare_digest(request.parameters)
        if request.digest != expected:
            raise InvalidInput(
                f"the request's digest is {request.digest}, but its parameters make it {expected}: "
                "the operator and this image are of different versions; use images of one version"
            )

    def _do(self, sources: Mapping[str, Source], resolved: Resolved) -> Result:
        probe(self._store)
        context = self._context(sources, resolved)
        output = self._run_body(context)
        self._mirror_base(sources)
        result = Result(
            stage=self._request.stage,
            digest=self._digests[self._request.stage],
            metrics=dict(output.metrics),
            facts=dict(output.facts),
            warnings=tuple(output.warnings),
            resolved=resolved if self._request.stage is Stage.PREPARE else None,
            scores=output.scores,
            publication=output.publication,
        )
        return self._store_output(output, context.output, result, resolved)

    def _recheck(self, standing: Manifest, sources: Mapping[str, Source], resolved: Resolved) -> Manifest:
        """The manifest with the metrics that this request's other fields change."""
        recheck = self._load_code(self._request.stage).recheck
        if recheck is None:
            return standing
        if self._is_base_of_hub:
            mirror = mirror_uri(self._store, resolved.base)
            sources = {**sources, "base": self._access.open_model(mirror, self._folder / "mirror")}
        result = standing.result
        metrics = {**result.metrics, **recheck(self._context(sources, resolved), result.metrics)}
        return standing.model_copy(update={"result": result.model_copy(update={"metrics": metrics})})

    def _context(self, sources: Mapping[str, Source], resolved: Resolved) -> StageContext:
        for name in ("output", "scratch"):
            (self._folder / name).mkdir()
        request = self._request
        gatherer = InputGatherer(request, resolved, self._access, self._store, self._progress)
        is_publish = request.stage is Stage.PUBLISH
        return StageContext(
            request=request,
            inputs=gatherer.gather(self._folder / "inputs"),
            output=self._folder / "output",
            scratch=self._folder / "scratch",
            progress=self._progress,
            stop=self._signals.event,
            checkpoints=self._checkpoints() if request.stage is Stage.TRAIN else None,
            sources=sources,
            publisher=StorePublisher(self._store, request.name, gatherer.read_stage) if is_publish else None,
        )

    def _checkpoints(self) -> StoreCheckpoints:
        keep = self._request.parameters.training.checkpoint.keep
        return StoreCheckpoints(self._store, self._digests[Stage.TRAIN], keep)

    def _run_body(self, context: StageContext) -> StageOutput:
        body = self._load_code(self._request.stage).run
        if self._request.stage is Stage.TRAIN:
            with self._serving_metrics(), self._signals.deferred():  # it writes a checkpoint and ends by itself
                output = body(context)
        else:
            output = body(context)
        self._signals.check()
        self._progress.close()
        return output

    def _serving_metrics(self) -> AbstractContextManager[None]:
        return nullcontext() if self._metrics is None else self._metrics.serving(self._metrics_port)

    @property
    def _is_base_of_hub(self) -> bool:
        return self._request.parameters.base_model.uri.startswith("hf://")

    def _mirror_base(self, sources: Mapping[str, Source]) -> None:
        """Copy a base of the hub; when prepare was done before as well, since its copy may have been deleted."""
        if self._request.stage is Stage.PREPARE and self._is_base_of_hub:
            mirror_model(self._store, sources["base"], self._progress)

    def _store_output(self, output: StageOutput, folder: Path, result: Result, resolved: Resolved) -> Result:
        attempt = Attempt(self._store, result.stage, result.digest)
        try:
            self._progress.say("storing the result")
            self._store_base_scores(folder, resolved)
            artifacts, files = attempt.upload(output, folder)
            seconds = round(time.monotonic() - self._started, 3)
            result = result.model_copy(update={"artifacts": artifacts, "seconds": seconds})
            result.encode()  # what cannot be told must not become a fact
        except BaseException as error:
            with self._signals.deferred():
                attempt.clean_up(won=False)
            # The attempt that wins removes the files of all others, also of those that are still at it.
            standing = self._read_manifest() if isinstance(error, TransientFault) else None
            if standing is None:
                raise
            return self._answer(standing, resolved, cached=True)
        with self._signals.deferred():
            manifest = Manifest(
                result=result,
                files=files,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=library_versions(),
            )
            standing = attempt.commit(manifest)
            attempt.clean_up(won=standing == manifest)
            return self._answer(standing, resolved, cached=standing != manifest)

    def _store_base_scores(self, folder: Path, resolved: Resolved) -> None:
        path = folder / BASE_SCORES / SCORES_FILE
        if self._request.stage is Stage.EVALUATE and path.is_file():
            key = digest.base_scores_key(digest.base_scores_digest(self._request.parameters, resolved))
            with suppress(Conflict):  # another run has scored the same base meanwhile
                self._store.put(key, path.read_bytes(), if_none_match=True)

    def _read_manifest(self) -> Manifest | None:
        stage = self._request.stage
        return read_manifest(self._store, stage, self._digests[stage])

    def _answer(self, manifest: Manifest, resolved: Resolved, cached: bool) -> Result:
        result = manifest.result.model_copy(update={"cached": cached})
        match result.stage:
            case Stage.PREPARE:
                return with_done(result.model_copy(update={"resolved": resolved}), self._done_results())
            case Stage.TRAIN:
                self._checkpoints().delete_all()
            case Stage.PUBLISH if cached and result.publication is not None and result.publication.published:
                # Another version may have been published since: this spec's is wanted again.
                Pointer(self._store, self._request.name).move_back(result.publication.version)
        return result

    def _done_results(self) -> tuple[Result, ...]:
        """Results of the later stages whose manifests are in the store, in the order of the stages."""
        done = []
        for stage, stage_digest in self._digests.items():
            manifest = read_manifest(self._store, stage, stage_digest) if stage is not Stage.PREPARE else None
            if manifest is not None and self._still_stands(manifest.result.publication):
                done.append(manifest.result.model_copy(update={"cached": True}))
        return tuple(done)

    def _still_stands(self, publication: Publication | None) -> bool:
        """A publication is done only while the pointer names its version: else publish has to move it back."""
        if publication is None or not publication.published:
            return True
        return Pointer(self._store, self._request.name).names(publication.version)


def with_done(result: Result, done: Sequence[Result]) -> Result:
    """A result of prepare with the results of later stages, as many and as much of each as its size allows."""
    brief = [each.model_copy(update={"facts": {}, "warnings": ()}) for each in done]
    for kept in (done, *(brief[:count] for count in range(len(brief), 0, -1))):
        whole = result.model_copy(update={"done": tuple(kept)})
        if len(whole.model_dump_json(exclude_defaults=True, exclude_none=True).encode()) <= MAX_RESULT_BYTES:
            return whole
    return result
