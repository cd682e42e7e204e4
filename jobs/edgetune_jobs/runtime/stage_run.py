"""One attempt at a stage: mark its use, look for its manifest, fetch inputs, run the body, store outputs.

request ── mark of use ── manifest in the store? ── yes ─────────► cached result
                              │ no
                              └─► store writable? ► inputs ► body ► artifacts ► manifest ► result
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from edgetune_contract import digest
from edgetune_contract.access.allowed_sources import refused_sources
from edgetune_contract.pipeline import BASE, BASE_SCORES, inputs_of
from edgetune_contract.request import FileEntry, LiveVersion, Manifest, Request, Resolved, Result
from edgetune_contract.stages import Stage
from edgetune_contract.training import TrainingSpec
from edgetune_contract.values.times import timestamp
from edgetune_jobs.errors import Interrupted, InvalidInput, NodeLost, TransientError
from edgetune_jobs.evaluation.edge.runtimes import missing_runtimes
from edgetune_jobs.evaluation.row_answers import ANSWERS
from edgetune_jobs.models.gpus import require_gpus
from edgetune_jobs.models.trial.process import shared_trial
from edgetune_jobs.publishing.publisher import Pointer, StorePublisher, read_done_stage
from edgetune_jobs.publishing.signing.signer import VersionSigner
from edgetune_jobs.runtime.base_copies import mirror_model, mirror_uri
from edgetune_jobs.runtime.inputs import InputGatherer, digests_of_run, with_formats
from edgetune_jobs.runtime.nodes.group import NodeGroup, meet
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.runtime.outputs import StageUpload, check_artifacts, library_versions, probe
from edgetune_jobs.runtime.progress import LineProgress, TrainingMetrics
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.supervisor import RANK_COMMAND, StoreOfRanks, train_in_ranks
from edgetune_jobs.runtime.settings import Settings
from edgetune_jobs.runtime.signals import Stopped, StopSignals
from edgetune_jobs.runtime.usage import moved, used, without_usage
from edgetune_jobs.stage import BASE_SCORES_FILE, LARGEST_BASE, OutputFiles, StageContext, StageOutput
from edgetune_jobs.store.access import StorageAccess, open_sources
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.store.store import PreconditionFailed
from edgetune_jobs.tensors.formats import candidates
from edgetune_jobs.tensors.text_model import is_multimodal, text_model
from edgetune_jobs.tracking.attempt import AttemptTracking
from edgetune_jobs.training.checkpoints import StoreCheckpoints

# Stages whose digests cover the formats of the edge model.
_AFTER_FORMATS = (Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH)

StageBody = Callable[[StageContext], StageOutput]
Recheck = Callable[[StageContext, Mapping[str, float]], StageOutput]
PlanOfRanks = Callable[[TrainingSpec, int, int, NodePlace], RankPlan | None]


@dataclass(frozen=True)
class StageCode:
    """The functions of a stage's module."""

    run: StageBody
    recheck: Recheck | None = None
    """Runs if the stage is already done: from its metrics to new values of those metrics and facts that also depend on
    fields outside of its digest."""

    plan_ranks: PlanOfRanks | None = None
    """train only: from spec.training, the GPUs of the container, the ranks that are set and the container's place among
    the nodes to the processes that run the body; None for this one."""

    rank_command: Sequence[str] = RANK_COMMAND
    """train only: starts one of these processes."""


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
        """Open the store, without any request to it.

        Args:
            request: the stage and its parameters.
            settings: the process's environment.
            signals: installed signal handlers, which can interrupt the stage.
            stream: gets the progress as JSON lines.
            load_code: returns the functions that do the stage's work.
            folder: folder for temporary files.
        """
        self._started = time.monotonic()
        self._request = request
        self._signals = signals
        self._load_code = load_code
        self._folder = folder
        self._image = settings.image
        self._signing_key = settings.signing_key
        self._gpus = settings.gpus
        self._ranks = settings.ranks
        self._place = settings.place if request.stage is Stage.TRAIN else NodePlace()
        self._plan: RankPlan | None = None
        self._group: NodeGroup | None = None
        self._credentials_folder = settings.credentials_folder
        self._gpu_bytes = settings.gpu_bytes
        self._cache = settings.cache
        self._deadline = None if settings.deadline_seconds is None else self._started + settings.deadline_seconds
        self._metrics_port = settings.metrics_port if request.stage is Stage.TRAIN else 0
        self._metrics = TrainingMetrics(request.namespace, request.name) if self._metrics_port else None
        self._progress = LineProgress(request.stage, stream, [self._metrics] if self._metrics else [])
        self._tracking = AttemptTracking(settings.tracking, request)
        self._access = StorageAccess(request.store, settings.credentials_folder)
        self._store = self._access.open_store()

    def run(self) -> Result:
        """The stage's result, from its manifest if the stage is already done.

        Raises:
            StageError: the stage failed.
            Stopped: a signal stopped it.
        """
        self._check_sources()
        sources: Mapping[str, Source] = {}
        if self._request.stage is Stage.PREPARE:
            self._progress.say("checking the base model and the data")
            sources = open_sources(self._access, self._request, self._folder / "sources")
        self._known_inputs = self._resolve(sources)
        self._digests = self._digests_of_run()
        self._check_digest()
        self._mark_uses()
        done = self._read_manifest()
        if done is not None:
            self._mirror_base(sources)
            return self._final_result(self._recheck(done, sources), cached=True)
        result = self._tracked(lambda: self._execute(sources))
        return result.model_copy(update={"warnings": (*result.warnings, *self._tracking.warnings)})

    def _check_sources(self) -> None:
        """Refuse what the namespace may not read, as the operator does before it creates the Job."""
        request = self._request
        stores = [request.store.uri.removesuffix(f"/{request.namespace}")]
        problems = refused_sources(request.parameters, request.namespace, stores, request.allowed_sources)
        if problems:
            raise InvalidInput("; ".join(problems))

    def _resolve(self, sources: Mapping[str, Source]) -> Resolved | None:
        if self._request.stage is not Stage.PREPARE:
            return self._request.resolved
        evaluation = sources.get("eval")
        return Resolved(
            base=sources[BASE].digest,
            train=sources["train"].digest,
            eval=evaluation.digest if evaluation else None,
            missing_runtimes=missing_runtimes(self._request.parameters.quantization.formats),
        )

    @property
    def _resolved(self) -> Resolved:
        """Digests of base and data. Every stage needs them, except a publish that only pins a version.

        Raises:
            InvalidInput: the request lacks them.
        """
        if self._known_inputs is None:
            raise InvalidInput(
                f"the request for the stage {self._request.stage} lacks `resolved`: copy it from the result of prepare"
            )
        return self._known_inputs

    def _digests_of_run(self) -> Mapping[Stage, str]:
        request = self._request
        if request.is_pin:
            return {Stage.PUBLISH: digest.pin_digest(request.parameters, request.name)}
        return digests_of_run(request, self._resolved)

    def _check_digest(self) -> None:
        """Refuse a digest that is not that of the parameters: the output would be stored under a wrong key."""
        request = self._request
        expected = self._digests.get(request.stage)
        if request.stage is Stage.PREPARE:
            expected = digest.prepare_digest(request.parameters)
        if request.digest != expected:
            raise InvalidInput(
                f"the request's digest is {request.digest}, but the digest of its parameters is {expected}: "
                "the operator and this image have different versions; use images of one version"
            )

    def _mark_uses(self) -> None:
        """Mark outputs as used before any manifest is read, so that no other object's clean-up removes them afterwards.

        prepare reports which later stages are done, so it marks the outputs of all of them. With formats Auto, those
        from quantize on have no digests before `_take_candidates`.
        """
        marked = self._digests if self._request.stage is Stage.PREPARE else (self._request.stage,)
        for stage in marked:
            if not (self._lacks_formats and stage in _AFTER_FORMATS):
                self._uses.mark(Use(stage, self._digests[stage]))

    @property
    def _uses(self) -> Uses:
        return Uses(self._store, self._request.name)

    @property
    def _lacks_formats(self) -> bool:
        """Whether this is a prepare that has not found yet which formats quantize writes."""
        is_auto = self._request.parameters.quantization.is_auto and self._request.stage is Stage.PREPARE
        return is_auto and self._resolved.formats is None

    def _take_candidates(self, output: StageOutput) -> None:
        """With formats Auto, resolve them: only then the later stages have digests."""
        if self._lacks_formats:
            self._known_inputs = with_formats(self._request, self._resolved, output.possible, self._store, self._uses)
            self._digests = self._digests_of_run()
            self._mark_uses()

    def _execute(self, sources: Mapping[str, Source]) -> Result:
        if self._gpus:  # before gigabytes of inputs are fetched
            require_gpus(self._gpus)
        probe(self._store)
        upload = StageUpload(self._store, self._request.stage, self._digests[self._request.stage])
        try:
            self._plan_training()
            if self._group is not None and self._place.node:
                return self._assist(self._group, sources, upload)
            result, files = self._work(sources, upload)
        except BaseException as error:
            with self._signals.deferred():
                upload.clean_up(won=False)
                reported = error if self._group is None else self._group.end(error, self._signals.event.is_set())
            # The winning attempt removes the files of all others, including those that are still uploading.
            may_be_done = isinstance(reported, TransientError | NodeLost) and not self._lacks_formats
            committed = self._read_manifest() if may_be_done else None
            if committed is not None:
                return self._final_result(committed, cached=True)
            if reported is error:
                raise
            raise reported from error
        with self._signals.deferred():
            manifest = self._manifest(result, files)
            committed = upload.commit(manifest)
            if self._group is not None:
                self._group.commit()
            upload.clean_up(won=committed == manifest)
            return self._final_result(committed, cached=committed != manifest)

    def _tracked(self, execute: Callable[[], Result]) -> Result:
        """Execute the stage; the tracker hears that it begins, and if it ends without its output."""
        if self._place.node:  # node 0 speaks for all
            return execute()
        self._tracking.begin(self._digests.get(Stage.PUBLISH, ""))
        try:
            return execute()
        except BaseException as error:
            with self._signals.deferred():
                self._tracking.end(stopped=isinstance(error, Stopped | Interrupted | NodeLost))
            raise

    def _plan_training(self) -> None:
        """Decide on the ranks of a training, and begin to meet its other nodes while inputs are fetched."""
        if self._request.stage is not Stage.TRAIN:
            return
        plan_ranks = self._load_code(Stage.TRAIN).plan_ranks
        training = self._request.parameters.training
        self._plan = plan_ranks(training, self._gpus, self._ranks, self._place) if plan_ranks else None
        if self._plan is not None and self._plan.nodes > 1:
            self._group = meet(self._place, self._plan.size, self._digests[Stage.TRAIN], self._image, self._deadline)

    def _assist(self, group: NodeGroup, sources: Mapping[str, Source], upload: StageUpload) -> Result:
        """Train with node 0, which stores and reports the output; a short result, once it has."""
        self._run_body(self._context(sources, upload))
        self._progress.say("waiting for node 0 to store the result")
        group.wait_for_commit()
        seconds = round(time.monotonic() - self._started, 3)
        return Result(stage=self._request.stage, digest=self._request.digest, cached=True, seconds=seconds)

    def _work(self, sources: Mapping[str, Source], upload: StageUpload) -> tuple[Result, tuple[FileEntry, ...]]:
        """Run the body and store its output; the result and all files."""
        context = self._context(sources, upload)
        output = self._run_body(context)
        self._take_candidates(output)
        check_artifacts(self._request, output)
        usage = used(self._folder)
        self._mirror_base(sources)
        self._progress.say("storing the result")
        self._store_base_scores(context.output)
        artifacts, files = upload.add_artifacts(output, context.output)
        result = Result(
            stage=self._request.stage,
            digest=self._digests[self._request.stage],
            seconds=round(time.monotonic() - self._started, 3),
            artifacts=artifacts,
            metrics={**usage, **output.metrics, **moved(self._access.traffic, self._cache)},
            facts=dict(output.facts),
            warnings=(*output.warnings, *(self._cache.warnings if self._cache else ())),
            resolved=self._resolved if self._request.stage is Stage.PREPARE else None,
            scores=output.scores,
            edge=output.edge,
            candidates=tuple(output.candidates),
            publication=output.publication,
        )
        result.encode()  # raises before the commit if the result cannot be sent
        return result, files

    def _recheck(self, done: Manifest, sources: Mapping[str, Source]) -> Manifest:
        """The manifest with metrics and facts updated for fields of this request that are outside of the digest."""
        recheck = self._load_code(self._request.stage).recheck
        if recheck is None:
            return done
        if self._is_base_copied(sources):
            mirror = mirror_uri(self._store, self._resolved.base)
            sources = {**sources, BASE: self._access.open_model(mirror, self._folder / "mirror")}
        result = done.result
        upload = StageUpload(self._store, result.stage, result.digest)
        found = recheck(self._context(sources, upload), result.metrics)
        self._take_candidates(found)
        # A spec with formats Auto and one with a list share the prepared data, but only the first has candidates; and
        # profiles share them of which only some know the memory of their GPU.
        facts = {name: fact for name, fact in result.facts.items() if name not in (candidates.FACT, LARGEST_BASE)}
        new = {"metrics": {**result.metrics, **found.metrics}, "facts": {**facts, **found.facts}}
        return done.model_copy(update={"result": result.model_copy(update=new)})

    def _context(self, sources: Mapping[str, Source], streams: OutputFiles) -> StageContext:
        for name in ("output", "scratch"):
            (self._folder / name).mkdir()
        request = self._request
        gatherer = self._gatherer() if inputs_of(request.stage, request.parameters) else None
        return StageContext(
            request=request,
            inputs=gatherer.gather() if gatherer else {},
            models=gatherer.models() if gatherer else {},
            output=self._folder / "output",
            streams=streams,
            scratch=self._folder / "scratch",
            progress=self._progress,
            stop=self._signals.event,
            deadline=self._deadline,
            checkpoints=self._checkpoints() if request.stage is Stage.TRAIN else None,
            gpu_bytes=self._gpu_bytes,
            sources=sources,
            base_copy_uri=gatherer.base_copy_uri() if gatherer and request.stage is Stage.TRAIN else None,
            publisher=self._publisher() if request.stage is Stage.PUBLISH else None,
            track=self._tracking.send_version,
            sizes=gatherer.sizes if gatherer else {},
            discard=gatherer.discard if gatherer else lambda _: None,
        )

    def _gatherer(self) -> InputGatherer:
        folder = self._folder / "inputs"
        return InputGatherer(
            self._request, self._resolved, self._access, self._store, self._progress, folder, self._cache
        )

    def _publisher(self) -> StorePublisher:
        def read_stage(stage: Stage) -> Manifest:
            return self._gatherer().read_stage(stage)

        return StorePublisher(self._store, self._request.name, read_stage, self._signer())

    def _signer(self) -> VersionSigner | None:
        """None if nothing is signed; a pin only moves the pointer. Nothing is published unsigned that shall be signed.

        Raises:
            InvalidInput: there is no key.
        """
        if self._request.sign is None or self._request.is_pin:
            return None
        if self._signing_key is None:
            raise InvalidInput("EDGETUNE_SIGNING_KEY is not set, and the request is to sign: set it to the key's file")
        return VersionSigner(self._store, self._signing_key, self._image, self._request.source_revision or "")

    def _checkpoints(self) -> StoreCheckpoints:
        keep = self._request.parameters.training.checkpoint.keep
        return StoreCheckpoints(self._store, self._digests[Stage.TRAIN], keep)

    def _run_body(self, context: StageContext) -> StageOutput:
        code = self._load_code(self._request.stage)
        if context.inputs or context.models:  # the message about them would remain for the seconds of the imports
            self._progress.say("importing the libraries")
        if self._request.stage is Stage.TRAIN:
            tracking = self._tracking.following(self._digests[Stage.PUBLISH], self._progress.add_listener)
            # On a signal, it writes a checkpoint and returns.
            with self._serving_metrics(), self._signals.deferred(), tracking:
                output = self._train(context, code)
        else:
            output = code.run(context)
        self._signals.check()
        self._progress.close()
        return output

    def _train(self, context: StageContext, code: StageCode) -> StageOutput:
        if self._plan is None:
            return code.run(context)
        store = StoreOfRanks(self._digests[Stage.TRAIN], self._credentials_folder, self._access.traffic)
        return train_in_ranks(context, self._plan, store, code.rank_command, group=self._group)

    def _serving_metrics(self) -> AbstractContextManager[None]:
        return nullcontext() if self._metrics is None else self._metrics.serving(self._metrics_port)

    def _is_base_copied(self, sources: Mapping[str, Source]) -> bool:
        """Whether later stages read a copy of the base in the store."""
        return self._request.parameters.base_model.is_on_hub or is_multimodal(sources[BASE])

    def _mirror_base(self, sources: Mapping[str, Source]) -> None:
        """Copy a base model of the hub, or the text part of a multimodal one, also if prepare is already done: the copy
        may have been deleted since."""
        if self._request.stage is Stage.PREPARE and self._is_base_copied(sources):
            mirror_model(self._store, sources[BASE], self._progress, self._text_model)

    def _text_model(self, source: Source) -> Source:
        return text_model(source, shared_trial(), self._folder / "text-model")

    def _manifest(self, result: Result, files: Sequence[FileEntry]) -> Manifest:
        return Manifest(
            result=result,
            files=tuple(files),
            created_at=timestamp(datetime.now(UTC)),
            versions=library_versions(),
            image=self._image,
            resolved=self._known_inputs,
            parameters=self._request.parameters.model_dump(mode="json", exclude_none=True),
        )

    def _store_base_scores(self, folder: Path) -> None:
        if self._request.stage is not Stage.EVALUATE:
            return
        scored = digest.base_scores_digest(self._request.parameters, self._resolved)
        # The scores come last: where they are, the answers are there too.
        keys = {ANSWERS: digest.base_answers_key(scored), BASE_SCORES_FILE: digest.base_scores_key(scored)}
        for name, key in keys.items():
            path = folder / BASE_SCORES / name
            if path.is_file():
                with suppress(PreconditionFailed):  # another run has stored the same of this base
                    self._store.put(key, path.read_bytes(), if_none_match=True)

    def _read_manifest(self) -> Manifest | None:
        stage = self._request.stage
        return read_manifest(self._store, stage, self._digests[stage])

    def _final_result(self, manifest: Manifest, cached: bool) -> Result:
        """The result to report, after the work that follows the manifest."""
        result = manifest.result.model_copy(update={"cached": cached})
        match result.stage:
            case Stage.PREPARE:
                found = {"resolved": self._resolved, "done": self._done_results(), "live": self._live()}
                return without_usage(result).model_copy(update=found)
            case Stage.TRAIN:
                self._checkpoints().delete_all()
            case Stage.PUBLISH:
                if cached and result.publication is not None and result.publication.published:
                    # Another version may have been published since: move the pointer back to the one of this spec. And
                    # it may have been published before its profile had a key.
                    self._publisher().restore(result.publication.version)
                return result.model_copy(update={"live": self._live()})
        return result

    def _live(self) -> LiveVersion | None:
        return Pointer(self._store, self._request.name).read_live()

    def _done_results(self) -> tuple[Result, ...]:
        """Results of the later stages that have a manifest in the store, in the order of the stages."""
        done = []
        for stage, stage_digest in self._digests.items():
            if stage is Stage.PREPARE:
                continue
            sign = self._request.sign is not None
            manifest = read_done_stage(self._store, self._request.name, stage, stage_digest, sign)
            if manifest is not None:
                done.append(without_usage(manifest.result).model_copy(update={"cached": True}))
        return tuple(done)
