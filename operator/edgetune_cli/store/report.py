"""Text output about models in a store: the table of versions and the report of a verification."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console

from edgetune_contract.pipeline import BASE, EDGE, SCORED_MODELS, TUNED
from edgetune_contract.request import Manifest, Resolved, Scores
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_share
from edgetune_contract.version import VersionDocument
from edgetune_operator.api.status.object_status import SHORT_VERSION

if TYPE_CHECKING:
    from edgetune_jobs.publishing.signing.stored import SignatureCheck
    from edgetune_jobs.publishing.verification import ArtifactCheck, Verification

_NO_IMAGE = "none (ran outside a container)"


def version_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the table of versions, from the rows of the JSON output."""
    table: list[tuple[str, ...]] = [("version", "published", "base", "tuned", "edge", "edge size", "state")]
    for row in rows:
        scores = row.get("scores", {})
        size = row["edge"]["artifact"]["bytes"] if "edge" in row else None
        shares = (format_share(scores.get(model)) for model in (BASE, TUNED, EDGE))
        table.append(
            (row["version"][:SHORT_VERSION], row.get("createdAt", ""), *shares, format_bytes(size), state_of(row))
        )
    return aligned(table, right=(2, 3, 4, 5))


def state_of(row: Mapping[str, Any]) -> str:
    """What there is to know about a version in a row of `edgetune versions`: current, pinned, refused and why."""
    if "problem" in row:
        return f"unreadable: {row['problem']}"
    marks = [mark for mark in ("current", "pinned") if row[mark]]
    if row.get("gainedNothing"):
        marks.append("gained nothing")
    if not row["published"]:
        marks.append(f"refused: {'; '.join(row.get('refusals', ()))}")
    return ", ".join(marks)


def report(console: Console, found: "Verification") -> None:
    """Print the report of a verification: subject, files, scores, provenance and, last, the verdict."""
    for name, text in _head(found):
        console.print(f"{name:11}{text}")
    for check in found.artifacts:
        _print_artifact(console, check)
    provenance = _Provenance.of(found)
    if provenance is not None:
        _print_scores(console, provenance.scores)
        _print_speed(console, provenance.speed)
        console.print("\nInputs", style="bold")
        for name, text in provenance.inputs():
            console.print(f"{name:17}{text}")
        console.print("\nStages", style="bold")
        _print_lines(console, _stage_lines(provenance, {check.stage: check.state for check in found.stages}))
        console.print()
        for name, text in provenance.libraries():
            console.print(f"{name:17}{text}")
    _print_verdict(console, found)


def _head(found: "Verification") -> Iterator[tuple[str, str]]:
    if found.version is not None:
        version = found.version
        yield "Model", f"{version.model} in namespace {version.namespace}"
        yield "Version", version.version
        yield ("Published" if version.published else "Refused"), version.created_at
        for refusal in version.refusals:
            yield "", refusal
    elif found.manifest is not None:
        yield "Stage", f"{found.manifest.result.stage} {found.manifest.result.digest}"
        yield "Done", found.manifest.created_at
    if found.signature is not None:
        yield "Signature", _signature(found.signature)
        if found.signature.source_revision:
            yield "Source", found.signature.source_revision
    yield "Document", found.document
    yield "Checked", f"{found.checked_at} by edgetune {metadata.version('edgetune')}"


def _signature(check: "SignatureCheck") -> str:
    key = f"by the key {check.key[:SHORT_VERSION]}"
    return {
        "valid": f"valid, {key}",
        "invalid": "NOT VALID",
        "missing": "none",
        "unchecked": f"{key}, not checked: give its public key with --verify-key",
    }[check.state]


def _print_artifact(console: Console, check: "ArtifactCheck") -> None:
    size = format_bytes(check.artifact.bytes)
    console.print(f"\n{check.artifact.name}: {len(check.files)} files, {size}", style="bold")
    console.print(check.uri)
    table = [("check", "bytes", "SHA-256", "file")]
    table += [("FAILED" if file.problem else "ok", f"{file.bytes:,}", file.sha256, file.path) for file in check.files]
    table += [("FAILED", "", "", path) for path in check.extra]
    _print_lines(console, aligned(table, right=(1,)))


def _print_scores(console: Console, scores: Scores | None) -> None:
    if scores is None or not scores.details:
        return
    console.print(f"\nScores on {scores.examples} held-out rows", style="bold")
    table: list[tuple[str, ...]] = [("model", "keyword recall", "exact match", "loss")]
    for model, details in sorted(scores.details.items(), key=_order):
        shares = (format_share(share) or "-" for share in (details.keyword_recall, details.exact_match))
        table.append((model, *shares, "-" if details.loss is None else f"{details.loss:.3f}"))
    _print_lines(console, aligned(table, right=(1, 2, 3)))
    if scores.gained_nothing:
        console.print("Training gained nothing: the tuned model is not better than the base.", style="yellow")


def _print_speed(console: Console, edge: EdgeMeasurement | None) -> None:
    if edge is None:
        return
    title = f"\nSpeed on {edge.threads} threads of {edge.cpu}, {edge.prompt_tokens}-token prompt"
    console.print(title, style="bold")
    table: list[tuple[str, ...]] = [("model", "tokens/s", "prompt tokens/s", "first token", "peak memory", "runtime")]
    for model, speed in edge.by_model.items():
        rates = (_rate(speed.generation_tokens_per_second), _rate(speed.prompt_tokens_per_second))
        first = "-" if speed.time_to_first_token_seconds is None else f"{speed.time_to_first_token_seconds:.2f} s"
        table.append((model, *rates, first, format_bytes(speed.peak_memory_bytes), speed.runtime))
    _print_lines(console, aligned(table, right=(1, 2, 3, 4)))


def _rate(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{tokens_per_second:,.1f}"


def _order(scored: tuple[str, object]) -> tuple[int, str]:
    """Sort key: the order in which the models are made. In JSON they are sorted by name."""
    model = scored[0]
    return SCORED_MODELS.index(model) if model in SCORED_MODELS else len(SCORED_MODELS), model


def _print_verdict(console: Console, found: "Verification") -> None:
    missing = [check.stage for check in found.stages if check.state == "missing"]
    if missing:
        console.print(f"\nNot in this store: {', '.join(missing)}. A run of the same recipe here runs them again.")
    if not found.problems:
        files = sum(len(check.files) for check in found.artifacts)
        size = sum(check.artifact.bytes for check in found.artifacts)
        console.print(f"\nVerified: {files} files of {size:,} bytes match their manifest.", style="green")
        return
    console.print(f"\nNot verified: {len(found.problems)} problems.", style="red")
    for problem in found.problems:
        console.print(f"  {problem}", style="red")


@dataclass(frozen=True)
class _StageRun:
    """One stage with its image, device and libraries."""

    stage: str
    digest: str
    created_at: str
    image: str
    device: str
    libraries: Mapping[str, str]


@dataclass(frozen=True)
class _Provenance:
    """Inputs, stages and results of a model, from a version's document or a stage's manifest."""

    resolved: Resolved | None
    parameters: Mapping[str, Any]
    stages: Sequence[_StageRun]
    scores: Scores | None
    speed: EdgeMeasurement | None

    @classmethod
    def of(cls, found: "Verification") -> "_Provenance | None":
        if found.version is not None:
            return cls._of_version(found.version)
        return None if found.manifest is None else cls._of_manifest(found.manifest)

    @classmethod
    def _of_version(cls, version: VersionDocument) -> "_Provenance":
        origins = version.provenance.stages
        stages = [
            _StageRun(stage, made.digest, made.created_at, made.image, made.facts.get("device", ""), made.libraries)
            for stage in Stage
            if (made := origins.get(stage)) is not None
        ]
        provenance = version.provenance
        return cls(provenance.resolved, provenance.parameters, stages, version.scores, version.measurement)

    @classmethod
    def _of_manifest(cls, manifest: Manifest) -> "_Provenance":
        result = manifest.result
        stage = _StageRun(
            result.stage,
            result.digest,
            manifest.created_at,
            manifest.image,
            result.facts.get("device", ""),
            manifest.versions,
        )
        return cls(manifest.resolved, manifest.parameters, [stage], result.scores, result.edge)

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Names and values of base, data, method and seed. Documents of other releases may lack some."""
        resolved = self.resolved
        base, train, evaluation = (self._section(*path) for path in _SOURCES)
        yield "base", _source(base, resolved.base if resolved else "")
        yield "training data", _source(train, resolved.train if resolved else "")
        if evaluation:
            yield "evaluation data", _source(evaluation, (resolved.eval or "") if resolved else "")
        else:
            share = self._section("dataset").get("evalSplitPercent", "?")
            yield "evaluation data", f"{share} % of the training data, selected by the seed"
        lora, training = self._section("lora"), self._section("training")
        targets = lora.get("targetModules", "?")
        modules = targets if isinstance(targets, str) else ", ".join(targets)
        method = self.parameters.get("method", "?")
        yield "method", f"{method}, rank {lora.get('rank', '?')}, alpha {lora.get('alpha', '?')}, {modules}"
        unit = "steps" if "maxSteps" in training else "epochs"
        length = training.get("maxSteps", training.get("epochs", "?"))
        batch, rate = training.get("batchSize", "?"), training.get("learningRate", "?")
        yield "training", f"{length} {unit} of batch {batch}, learning rate {rate}"
        yield "seed", str(training.get("seed", "?"))

    def libraries(self) -> Iterator[tuple[str, str]]:
        """Libraries of the first stage, and those of each later stage that differ from it."""
        first, *others = self.stages
        yield "libraries", _versions(first.libraries)
        for stage in others:
            if differing := {
                name: version for name, version in stage.libraries.items() if first.libraries.get(name) != version
            }:
                yield f"  {stage.stage}", _versions(differing)

    def _section(self, *path: str) -> Mapping[str, Any]:
        section: Any = self.parameters
        for name in path:
            section = section.get(name) if isinstance(section, Mapping) else None
        return section if isinstance(section, Mapping) else {}


_SOURCES = (("baseModel",), ("dataset", "train"), ("dataset", "eval"))


def _source(source: Mapping[str, Any], digest: str) -> str:
    revision = f" at {source['revision']}" if source.get("revision") else ""
    return f"{source.get('uri', '?')}{revision}, content {digest or '?'}"


def _versions(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))


def _stage_lines(provenance: _Provenance, states: Mapping[str, str]) -> Iterator[str]:
    """The table of stages; for a version with a column of what the store has of each, and with publish."""
    head: tuple[str, ...] = ("stage", "digest", "done", "device", "image")
    table = [(*head, "in this store") if states else head]
    for each in provenance.stages:
        row = (each.stage, each.digest[:SHORT_VERSION], each.created_at, each.device or "-", each.image or _NO_IMAGE)
        table.append((*row, states.get(each.stage, "")) if states else row)
    if states:
        table.append((Stage.PUBLISH, "", "", "", "", states[Stage.PUBLISH]))
    return aligned(table)


def aligned(table: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> Iterator[str]:
    """Lines of aligned columns. They are never truncated: reports are read, searched and filed as text."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "   ".join(cells).rstrip()


def _print_lines(console: Console, lines: Iterator[str]) -> None:
    for line in lines:
        console.print(line)
