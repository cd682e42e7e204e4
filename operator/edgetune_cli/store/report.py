"""What people read of models in a store: a table of versions, and the report of a verification."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.pipeline import BASE, EDGE, SCORED_MODELS, TUNED
from edgetune_contract.request import Manifest, Resolved, Scores
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_operator.api.objects import SHORT_VERSION
from edgetune_operator.api.units import format_bytes, format_share

if TYPE_CHECKING:
    from edgetune_jobs.publishing.verification import ArtifactCheck, Verification

_OUTSIDE = "none: it ran outside of a container"


def version_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Versions as `edgetune versions` lists them, each a row with what JSON says of it."""
    table: list[tuple[str, ...]] = [("version", "published", "base", "tuned", "edge", "edge size", "state")]
    for row in rows:
        scores = row.get("scores", {})
        size = row["edge"]["artifact"]["bytes"] if "edge" in row else None
        shares = (format_share(scores.get(model)) for model in (BASE, TUNED, EDGE))
        table.append(
            (row["version"][:SHORT_VERSION], row.get("createdAt", ""), *shares, format_bytes(size), _state(row))
        )
    return _aligned(table, right=(2, 3, 4, 5))


def _state(row: Mapping[str, Any]) -> str:
    if "problem" in row:
        return f"unreadable: {row['problem']}"
    marks = [mark for mark in ("current", "pinned") if row[mark]]
    if not row["published"]:
        marks.append(f"refused: {'; '.join(row.get('refusals', ()))}")
    return ", ".join(marks)


def report(console: Console, found: "Verification") -> None:
    """The whole report of a verification: what, where, each file, scores, provenance, and the verdict at its end."""
    for name, text in _head(found):
        console.print(f"{name:11}{text}")
    for check in found.artifacts:
        _print_artifact(console, check)
    made = _Made.of(found)
    if made is not None:
        _print_scores(console, made.scores)
        _print_speed(console, made.speed)
        console.print("\nMade of", style="bold")
        for name, text in made.inputs():
            console.print(f"{name:17}{text}")
        console.print("\nMade with", style="bold")
        _print_lines(console, _stages(made))
        console.print()
        for name, text in made.libraries():
            console.print(f"{name:17}{text}")
    for note in found.notes:
        console.print(f"\nNote: {note}")
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
    yield "Document", found.document
    yield "Checked", f"{found.checked_at} by edgetune {metadata.version('edgetune')}"


def _print_artifact(console: Console, check: "ArtifactCheck") -> None:
    size = format_bytes(check.artifact.bytes)
    console.print(f"\n{check.artifact.name}: {len(check.files)} files, {size}", style="bold")
    console.print(check.uri)
    table = [("check", "bytes", "SHA-256", "file")]
    table += [("FAILED" if file.problem else "ok", f"{file.bytes:,}", file.sha256, file.path) for file in check.files]
    table += [("FAILED", "", "", path) for path in check.extra]
    _print_lines(console, _aligned(table, right=(1,)))


def _print_scores(console: Console, scores: Scores | None) -> None:
    if scores is None or not scores.details:
        return
    console.print(f"\nScores on {scores.examples} held-out rows", style="bold")
    table: list[tuple[str, ...]] = [("model", "keyword recall", "exact match", "loss")]
    for model, details in sorted(scores.details.items(), key=_order):
        shares = (format_share(share) or "-" for share in (details.keyword_recall, details.exact_match))
        table.append((model, *shares, "-" if details.loss is None else f"{details.loss:.3f}"))
    _print_lines(console, _aligned(table, right=(1, 2, 3)))


def _print_speed(console: Console, edge: EdgeMeasurement | None) -> None:
    if edge is None:
        return
    title = f"\nSpeed on {edge.threads} threads of {edge.cpu}, after a prompt of {edge.prompt_tokens} tokens"
    console.print(title, style="bold")
    table: list[tuple[str, ...]] = [("model", "tokens/s", "prompt tokens/s", "first token", "peak memory", "runtime")]
    for model, speed in edge.by_model.items():
        rates = (_rate(speed.generation_tokens_per_second), _rate(speed.prompt_tokens_per_second))
        first = "-" if speed.time_to_first_token_seconds is None else f"{speed.time_to_first_token_seconds:.2f} s"
        table.append((model, *rates, first, format_bytes(speed.peak_memory_bytes), speed.runtime))
    _print_lines(console, _aligned(table, right=(1, 2, 3, 4)))


def _rate(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{tokens_per_second:,.1f}"


def _order(scored: tuple[str, object]) -> tuple[int, str]:
    """The models in the order in which they are made; JSON has them by name."""
    model = scored[0]
    return SCORED_MODELS.index(model) if model in SCORED_MODELS else len(SCORED_MODELS), model


def _print_verdict(console: Console, found: "Verification") -> None:
    if not found.problems:
        files = sum(len(check.files) for check in found.artifacts)
        size = sum(check.artifact.bytes for check in found.artifacts)
        console.print(f"\nVerified: {files} files of {size:,} bytes are what was written.", style="green")
        return
    console.print(f"\nNot verified: {len(found.problems)} problems.", style="red")
    for problem in found.problems:
        console.print(f"  {problem}", style="red")


@dataclass(frozen=True)
class _StageMade:
    """One stage, and what it ran with."""

    stage: str
    digest: str
    created_at: str
    image: str
    device: str
    libraries: Mapping[str, str]


@dataclass(frozen=True)
class _Made:
    """What a model was made of and with, from a version's document or a stage's manifest."""

    resolved: Resolved | None
    parameters: Mapping[str, Any]
    stages: Sequence[_StageMade]
    scores: Scores | None
    speed: EdgeMeasurement | None

    @classmethod
    def of(cls, found: "Verification") -> "_Made | None":
        if found.version is not None:
            return cls._of_version(found.version)
        return None if found.manifest is None else cls._of_manifest(found.manifest)

    @classmethod
    def _of_version(cls, version: VersionDocument) -> "_Made":
        origins = version.provenance.stages
        stages = [
            _StageMade(stage, made.digest, made.created_at, made.image, made.facts.get("device", ""), made.libraries)
            for stage in Stage
            if (made := origins.get(stage)) is not None
        ]
        provenance = version.provenance
        return cls(provenance.resolved, provenance.parameters, stages, version.scores, version.measurement)

    @classmethod
    def _of_manifest(cls, manifest: Manifest) -> "_Made":
        result = manifest.result
        stage = _StageMade(
            result.stage,
            result.digest,
            manifest.created_at,
            manifest.image,
            result.facts.get("device", ""),
            manifest.versions,
        )
        return cls(manifest.resolved, manifest.parameters, [stage], result.scores, result.edge)

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Base, data, method and seed: name and text. Documents of other releases may lack some."""
        resolved = self.resolved
        base, train, evaluation = (self._section(*path) for path in _SOURCES)
        yield "base", _source(base, resolved.base if resolved else "")
        yield "training data", _source(train, resolved.train if resolved else "")
        if evaluation:
            yield "evaluation data", _source(evaluation, (resolved.eval or "") if resolved else "")
        else:
            share = self._section("dataset").get("evalSplitPercent", "?")
            yield "evaluation data", f"{share} % of the training data, split by the seed"
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
        """Libraries: once if all stages ran with the same ones, else for each stage that differs from the first."""
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


def _stages(made: _Made) -> Iterator[str]:
    table = [("stage", "digest", "done", "device", "image")]
    for each in made.stages:
        row = (each.stage, each.digest[:SHORT_VERSION], each.created_at, each.device or "-", each.image or _OUTSIDE)
        table.append(row)
    return _aligned(table)


def _aligned(table: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> Iterator[str]:
    """Lines with columns side by side, never cut: a report is read, searched and filed as a text."""
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
