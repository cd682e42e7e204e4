"""Two versions of a model in a store with everything that a report shows: fixed figures, written without any stage."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import Artifact, FileEntry, Manifest, ModelScores, Resolved, Result, Scores
from edgetune_contract.results.measurement import EdgeMeasurement, ModelSpeed
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.version import EdgeModel, Provenance, StageOrigin, StoredArtifact, VersionDocument
from edgetune_jobs.data.token_lengths import TokenLengths
from edgetune_jobs.publishing.publisher import StorePublisher
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.reporting.run_record import GpuTime, RunRecord, StageUse, Usage
from edgetune_jobs.reporting.stored_run import read_stored_run
from edgetune_jobs.store.files import file_list_digest
from edgetune_jobs.store.manifests import write_manifest_once
from edgetune_jobs.store.store import Store, files_below, upload_folder, uri_of
from support.published import ATTEMPT, IMAGE, LIBRARIES, MODEL, no_stage

RESOLVED = Resolved(base="a" * 64, train="b" * 64, eval="c" * 64)
GGUF = "edge-gguf-q8_0"
STEPS = 264
RESUMED_AT = 101
PARAMETERS: Mapping[str, Any] = {
    "baseModel": {
        "uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    },
    "dataset": {
        "train": {"uri": "s3://datasets/sensor/train.jsonl"},
        "eval": {"uri": "s3://datasets/sensor/eval.jsonl"},
    },
    "training": {"learningRate": 0.0004, "batchSize": 8, "maxLength": 256},
    "quantization": {"formats": ["BitsAndBytesInt8", "GGUF-Q8_0"]},
    "evaluation": {
        "gates": {"minScore": 0.85, "minImprovement": 0.5, "maxDrop": 0.05, "maxEdgeBytes": "200M"},
        "edge": {"minTokensPerSecond": 8, "maxPeakMemory": "1500M"},
    },
}
USAGE = Usage(
    stages=(
        StageUse(Stage.PREPARE, attempts=1),
        StageUse(Stage.TRAIN, attempts=2, preemptions=1, lost_steps=12, gpu_seconds=1480.0),
        StageUse(Stage.EVALUATE, attempts=1),
    ),
    run=GpuTime(1480.0, 0.0, 61.0, 188.0, 42.0, 0.0, {"EUR": 1.02}),
    total=GpuTime(2390.0, 310.0, 61.0, 292.0, 97.0, 0.0, {"EUR": 1.65}),
)
_FAULTS = (
    ("bearing wear", "replace the bearing", "a vibration level that keeps climbing", "11.4 mm/s"),
    ("fouled cooler", "clean the cooler", "temperature far over its normal range", "135.8 °C"),
    ("seal leak", "replace the seal", "a sudden pressure drop", "1.0 bar"),
    ("clogged filter", "change the filter", "a differential pressure that rises", "2.9 bar"),
)
_UNITS = ("Blower B-92", "Pump P-90", "Compressor C-61", "Fan F-17", "Pump P-12")


@dataclass(frozen=True)
class RunFigures:
    """What distinguishes the two versions."""

    edge_score: float
    final_loss: float
    rank: int
    edge_misses: Sequence[int]
    """Rows that only the edge model answers wrongly."""


FIRST = RunFigures(edge_score=0.9167, final_loss=0.06, rank=8, edge_misses=(2, 5, 7, 9, 11))
SECOND = RunFigures(edge_score=0.9792, final_loss=0.012, rank=16, edge_misses=(5, 9))


def publish_two(store: Store, folder: Path) -> tuple[VersionDocument, VersionDocument]:
    """Publish both versions, the first one earlier; their documents.

    Args:
        store: gets all files of both runs.
        folder: for local files before they are uploaded.
    """
    return publish_run(store, folder / "first", FIRST, 1), publish_run(store, folder / "second", SECOND, 2)


def fixed_runs(store: Store, folder: Path) -> tuple[RunRecord, RunRecord]:
    """The records of both versions, the newer one first and with attempts and GPU time."""
    first, second = publish_two(store, folder)
    return read_stored_run(store, second, USAGE), read_stored_run(store, first)


def publish_run(store: Store, folder: Path, figures: RunFigures, number: int) -> VersionDocument:
    """Publish a version with the output of all its stages."""
    files = {
        Stage.PREPARE: {"prepared": {"report.json": json.dumps(_data_report())}},
        Stage.TRAIN: {"adapter": {"metrics.jsonl": _lines(_steps(figures)), "adapter_model.safetensors": "w" * 48_000}},
        Stage.MERGE: {"merged": {"model.safetensors": "w" * 5000}},
        Stage.QUANTIZE: {
            "edge-bnb-int8": {"model.safetensors": "w" * 3100},
            GGUF: {"model-Q8_0.gguf": "w" * 2700},
        },
        Stage.EVALUATE: {"evaluation": {"answers.jsonl": _lines(_answers(figures))}},
    }
    manifests = {
        stage: _write_stage(store, folder, stage, sha256_of([stage, number]), artifacts, figures, number)
        for stage, artifacts in files.items()
    }
    document = _document(manifests, figures, number)
    StorePublisher(store, MODEL, no_stage).publish(document)
    stored = Versions(store, MODEL).read(document.version)
    assert stored is not None
    return stored


def _write_stage(
    store: Store,
    folder: Path,
    stage: Stage,
    digest: str,
    artifacts: Mapping[str, Mapping[str, str]],
    figures: RunFigures,
    number: int,
) -> Manifest:
    key = f"stages/{stage}/{digest}"
    entries: list[FileEntry] = []
    made: list[Artifact] = []
    for name, files in artifacts.items():
        local = folder / digest / name
        local.mkdir(parents=True)
        for path, content in files.items():
            (local / path).write_text(content, encoding="utf-8")
        uploaded = upload_folder(store, local, f"{key}/{ATTEMPT}/{name}", relative_to=key)
        own = files_below(uploaded, f"{ATTEMPT}/{name}")
        entries += uploaded
        made.append(
            Artifact(
                name=name,
                uri=uri_of(store, f"{key}/{ATTEMPT}/{name}"),
                bytes=_SHOWN_BYTES[name],
                sha256=file_list_digest(own),
            )
        )
    result = Result(
        stage=stage,
        digest=digest,
        seconds=_SECONDS[stage],
        artifacts=tuple(made),
        metrics=_metrics(stage, figures),
        facts=_FACTS.get(stage, {}),
        warnings=_WARNINGS.get(stage, ()),
    )
    manifest = Manifest(
        result=result,
        files=tuple(entries),
        created_at=f"2026-11-{22 + number}T08:{list(Stage).index(stage):02d}:00Z",
        versions=LIBRARIES,
        image=IMAGE,
    )
    write_manifest_once(store, stage, digest, manifest)
    return manifest


# The files are small; sizes in the documents are those of the real model.
_SHOWN_BYTES = {
    "prepared": 37_257,
    "adapter": 23_123_521,
    "merged": 272_585_219,
    "edge-bnb-int8": 167_084_182,
    GGUF: 148_335_483,
    "evaluation": 9246,
}
_SECONDS = {Stage.PREPARE: 15.9, Stage.TRAIN: 1204.8, Stage.MERGE: 2.8, Stage.QUANTIZE: 6.0, Stage.EVALUATE: 90.5}
_WARNINGS = {Stage.PREPARE: ("704 training examples: domain adaptation usually needs 2,000 to 10,000",)}
_FACTS = {
    Stage.PREPARE: {"architecture": "LlamaForCausalLM"},
    Stage.TRAIN: {
        "device": "NVIDIA L4",
        "optimizer": "paged_adamw_8bit",
        "layout": "PaddingFree",
        "attention": "Varlen",
        "microBatchSize": "8 x 1 accumulated, chosen for 21.8 GiB of free memory",
        "gradientCheckpointing": "no layer is recomputed",
        "adapter": "of step 240, which has the lowest validation loss",
    },
    Stage.EVALUATE: {"device": "CPU, 2 threads"},
}


def _metrics(stage: Stage, figures: RunFigures) -> dict[str, float]:
    used: dict[str, float] = {"usedMemoryBytes": 876_376_064}
    if stage is Stage.PREPARE:
        return {**used, "baseBytes": 272_585_121, "trainExamples": 704, "evalExamples": 96}
    if stage is Stage.TRAIN:
        return {
            **used,
            "steps": STEPS,
            "epochs": 3.0,
            "loss": figures.final_loss,
            "bestStep": 240,
            "tokensPerSecond": 2410.5,
            "trainSeconds": 1012.0,
            "trainableParameters": 4_884_480 * figures.rank // 16,
            "trainableShare": 0.035 * figures.rank / 16,
            "peakMemoryBytes": 3_106_717_696,
            "quantizedShare": 0.789,
        }
    return used


def _steps(figures: RunFigures) -> Iterator[dict[str, Any]]:
    """A training that was resumed at step 101, and evaluated every 40 steps."""
    noise = random.Random(7)
    for step in range(1, STEPS + 1):
        warmed = min(1.0, step / 8)
        rate = 0.0004 * warmed * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        loss = 5.2 * math.exp(-step / 18) + figures.final_loss * (1 + 0.35 * noise.random())
        line = {
            "step": step,
            "epoch": round(step / 88, 4),
            "loss": round(loss, 6),
            "learningRate": rate,
            "gradientNorm": round(0.25 + 3.1 * math.exp(-step / 30) + 0.3 * noise.random(), 5),
            "attempt": 1 if step < RESUMED_AT else 2,
        }
        if step % 40 == 0 or step == STEPS:
            line["validationLoss"] = round(
                figures.final_loss * 1.4 + 5 * math.exp(-step / 17) + (step > 240) * 0.004, 5
            )
        yield line


def _data_report() -> dict[str, Any]:
    lengths = random.Random(3)
    kinds = {
        "train": [round(lengths.gauss(54, 4)) for _ in range(704)],
        "eval": [round(lengths.gauss(56, 4)) for _ in range(96)],
    }
    return {"maxLength": 256, **{kind: _rows(values) for kind, values in kinds.items()}}


def _rows(values: Sequence[int]) -> dict[str, Any]:
    counted = TokenLengths()
    for value in values:
        counted.add(value, is_truncated=False)
    return {
        "examples": len(values),
        "tokens": sum(values),
        "truncated": 0,
        "lengths": {**counted.percentiles(50, 90, 99), "max": counted.longest},
        "histogram": counted.histogram(),
    }


def _answers(figures: RunFigures) -> Iterator[dict[str, Any]]:
    for row in range(12):
        fault, action, seen, value = _FAULTS[row % len(_FAULTS)]
        wrong_fault, wrong_action, _, _ = _FAULTS[(row + 1) % len(_FAULTS)]
        right, wrong = (f"Fault: {f}. Action: {a}." for f, a in ((fault, action), (wrong_fault, wrong_action)))
        prompt = (
            f"### Instruction:\nGive a diagnosis. Unit: {_UNITS[row % len(_UNITS)]}. Observation: {seen}. "
            f"Value: {value}.\n\n### Response:\n"
        )
        answers = dict.fromkeys(("tuned", "merged", "edge", GGUF), right)
        answers["base"] = f"The {_UNITS[row % len(_UNITS)].split()[0].lower()} is a high-end, high-end, high-end"
        if row in figures.edge_misses:
            answers["edge"] = wrong
        scores = {name: float(text == right) for name, text in answers.items()}
        if row == 9:
            answers["edge"], scores["edge"] = f"Fault: {fault}.", 0.5
        order = ("base", "tuned", "merged", "edge", GGUF)
        yield {
            "row": row,
            "prompt": prompt,
            "reference": right,
            "scores": {name: scores[name] for name in order},
            **{name: answers[name] for name in order},
        }


def _document(manifests: Mapping[Stage, Manifest], figures: RunFigures, number: int) -> VersionDocument:
    quantize = manifests[Stage.QUANTIZE]
    edges = [
        EdgeModel(artifact=StoredArtifact.of(each), files=files_below(quantize.files, f"{ATTEMPT}/{each.name}"))
        for each in quantize.result.artifacts
    ]
    parameters = Parameters.model_validate({**PARAMETERS, "lora": {"rank": figures.rank, "alpha": 32}})
    shares = {"base": 0.0, "tuned": 0.9896, "merged": 1.0, "edge": figures.edge_score, GGUF: 0.9896}
    losses = {"base": 4.772, "tuned": 0.0098, "merged": 0.0095, "edge": figures.final_loss, GGUF: 0.0093}
    runtimes = dict.fromkeys(shares, "transformers 5.23.0") | {GGUF: "llama.cpp 0.3.36"}
    details = {
        name: ModelScores(keyword_recall=share, exact_match=share, loss=losses[name], runtime=runtimes[name])
        for name, share in shares.items()
    }
    return VersionDocument(
        model=MODEL,
        namespace="team-a",
        version=sha256_of(["version", number]),
        created_at=f"2026-11-{22 + number}T08:06:00Z",
        published=True,
        edge=edges[0],
        further_edges=tuple(edges[1:]),
        artifacts=tuple(StoredArtifact.of(each) for made in manifests.values() for each in made.result.artifacts),
        scores=Scores(
            **{name: shares[name] for name in ("base", "tuned", "merged", "edge")}, examples=96, details=details
        ),
        measurement=_measurement(),
        provenance=Provenance(
            resolved=RESOLVED,
            parameters=parameters.model_dump(mode="json", exclude_none=True),
            stages={stage: _origin(manifest) for stage, manifest in manifests.items()},
        ),
    )


def _measurement() -> EdgeMeasurement:
    def speed(generation: float, prompt: float, first: float, peak: int, runtime: str) -> dict[str, Any]:
        return {
            "runtime": runtime,
            "generation_tokens_per_second": generation,
            "prompt_tokens_per_second": prompt,
            "time_to_first_token_seconds": first,
            "peak_memory_bytes": peak,
            "baseline_memory_bytes": 757_000_000 if "transformers" in runtime else 61_000_000,
        }

    return EdgeMeasurement(
        **speed(11.2, 167.7, 0.268, 1_021_000_000, "transformers 5.23.0"),
        cpu="AMD EPYC",
        threads=2,
        prompt_tokens=45,
        new_tokens=32,
        base=ModelSpeed(**speed(20.5, 483.0, 0.093, 1_089_000_000, "transformers 5.23.0")),
        further={GGUF: ModelSpeed(**speed(58.6, 412.0, 0.109, 268_000_000, "llama.cpp 0.3.36"))},
    )


def _origin(manifest: Manifest) -> StageOrigin:
    return StageOrigin(
        digest=manifest.result.digest,
        created_at=manifest.created_at,
        image=manifest.image,
        libraries=manifest.versions,
        metrics=manifest.result.metrics,
        facts=manifest.result.facts,
    )


def _lines(values: Iterator[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)
