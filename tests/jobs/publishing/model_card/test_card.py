"""The model card of an edge model: front matter that model hubs read, scores, licence, and lines to run it."""

import json
from typing import Any

import pytest
import yaml

from edgetune_contract.request import FileEntry, ModelScores, Scores
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.version import EdgeModel, Provenance, StageOrigin, StoredArtifact, VersionDocument
from edgetune_jobs.publishing.model_card.card import CARD, model_card, with_cards
from edgetune_jobs.store.files import fingerprint_of_bytes

DIGEST = "0123456789abcdef" * 4
SPEC: dict[str, Any] = {
    "baseModel": {"uri": "hf://org/base", "revision": "0123456789" * 4},
    "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}, "template": "Q: {instruction}\nA:"},
    "training": {"maxSteps": 32},
    "quantization": {"formats": ["GGUF-Q8_0", "BitsAndBytesInt8"]},
}
MODELS = {
    "base": ModelScores(keyword_recall=0.0, exact_match=0.0, loss=4.772),
    "tuned": ModelScores(keyword_recall=0.9896, exact_match=0.9896, loss=0.01),
    "edge": ModelScores(keyword_recall=0.9792, exact_match=0.9688, loss=0.0125),
    "edge-bnb-int8": ModelScores(keyword_recall=1.0, exact_match=1.0, loss=0.009),
}


def edge(name: str, *files: str) -> EdgeModel:
    key = f"stages/quantize/{DIGEST}/0011223344556677/{name}"
    entries = tuple(FileEntry(path=path, bytes=1_000_000, sha256=DIGEST) for path in files)
    artifact = StoredArtifact(name=name, key=key, bytes=148_000_000, sha256=DIGEST)
    return EdgeModel(artifact=artifact, files=entries)


def document(spec: dict[str, Any] | None = None, facts: dict[str, str] | None = None, **fields: Any) -> VersionDocument:
    known = Parameters.model_validate(SPEC).model_dump(mode="json", exclude_none=True)
    parameters = {**known, **(spec or {})}
    stage = {"digest": DIGEST, "created_at": "2026-11-24T08:00:00+00:00"}
    prepared = StageOrigin(**stage, facts=facts or {}, metrics={"baseBytes": 272_585_121.0, "trainExamples": 704.0})
    values = {
        "model": "sensor-faults",
        "namespace": "team-a",
        "version": DIGEST,
        "created_at": "2026-11-24T09:00:00+00:00",
        "published": True,
        "edge": edge("edge-gguf-q8_0", "model-Q8_0.gguf", "Modelfile"),
        "further_edges": (edge("edge-bnb-int8", "model.safetensors"),),
        "artifacts": (
            StoredArtifact(name="adapter", key=f"stages/train/{DIGEST}/0/adapter", bytes=23_123_515, sha256=DIGEST),
        ),
        "scores": Scores(base=0.0, tuned=0.9896, edge=0.9792, examples=96, details=MODELS),
        "provenance": Provenance(
            resolved={"base": "a" * 64, "train": "b" * 64},
            parameters=parameters,
            stages={Stage.PREPARE: prepared, Stage.QUANTIZE: StageOrigin(**stage, libraries={"torch": "2.13.0"})},
        ),
        **fields,
    }
    return VersionDocument.model_validate(values)


def front_matter(card: str) -> dict[str, Any]:
    matter: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return matter


def test_the_front_matter_is_what_model_hubs_read() -> None:
    made = document(facts={"license": "apache-2.0", "licenseFile": "README.md"})

    gguf, bnb = (front_matter(model_card(made, each)) for each in made.edges)

    assert gguf == {
        "license": "apache-2.0",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["edgetune", "qlora", "gguf", "llama.cpp", "ollama"],
    }
    assert (bnb["library_name"], bnb["tags"]) == ("transformers", ["edgetune", "qlora", "bitsandbytes", "8-bit"])


def test_the_hubs_own_library_reads_the_front_matter() -> None:
    from huggingface_hub import ModelCard

    data: dict[str, Any] = vars(ModelCard(model_card(document(), document().edge)).data)

    assert (data["license"], data["base_model"], data["pipeline_tag"]) == ("unknown", "org/base", "text-generation")


def test_the_scores_of_all_models_and_what_quantizing_cost_are_there() -> None:
    made = document()
    gguf, bnb = (model_card(made, each) for each in made.edges)

    assert "| base | 273 MB | 0.0% | 0.0% | 4.772 |" in gguf
    assert "| tuned: base with adapter | 23.1 MB | 99.0% | 99.0% | 0.010 |" in gguf
    assert "| edge-gguf-q8_0 | 148 MB | 97.9% | 96.9% | 0.013 |" in gguf
    assert "cost +1.0 points" in gguf
    assert "cost -1.0 points" in bnb


def test_a_training_that_gained_nothing_is_said() -> None:
    unchanged = Scores(base=0.5, tuned=0.5, edge=0.5, examples=96, details=MODELS)

    found, gained = (model_card(each, each.edge) for each in (document(scores=unchanged), document()))

    assert "Training gained nothing: on these rows, the tuned model is not better" in found
    assert "gained nothing" not in gained


def test_speed_is_that_of_the_format() -> None:
    speed = {"runtime": "llama.cpp 0.3.36", "generation_tokens_per_second": 84.8, "peak_memory_bytes": 233_000_000}
    measured = EdgeMeasurement(**speed, cpu="AMD EPYC", threads=2, prompt_tokens=45, new_tokens=32)
    made = document(measurement=measured)

    gguf, bnb = (model_card(made, each) for each in made.edges)

    assert "generated 84.8 tokens per second, with a peak memory of 233 MB" in gguf
    assert "tokens per second" not in bnb


def test_the_licence_of_the_base_is_named_or_unknown() -> None:
    known = document(facts={"license": "llama3.1", "licenseFile": "LICENSE"})
    unknown, older = document(facts={"license": "unknown"}), document()

    assert "has the licence `llama3.1`, by its file `LICENSE`" in model_card(known, known.edge)
    assert "The licence of the base `hf://org/base` is unknown" in model_card(unknown, unknown.edge)
    assert "was not recorded by the release" in model_card(older, older.edge)


@pytest.mark.parametrize(
    "text",
    [
        "a](http://evil) <script>alert(1)</script>",
        "x\n---\nlicense: mit\n---\n# Big",
        "``` `` ` |a|b|",
        "*b* _i_ ~~s~~",
    ],
)
def test_texts_of_users_stay_text(text: str) -> None:
    made = document(
        {
            "dataset": {"train": {"uri": f"s3://{text}"}, "template": f"{text}{{instruction}}"},
            "baseModel": {"uri": text},
        },
        namespace=text,
    )
    card = model_card(made, made.edge)

    html = rendered(card.split("---\n", 2)[2])
    assert front_matter(card)["license"] == "unknown"
    assert "<script" not in html
    assert 'href="http://evil"' not in html
    assert "<em>" not in html
    assert "<del>" not in html
    assert html.count("<h1>") == 1


def rendered(markdown: str) -> str:
    from markdown_it import MarkdownIt  # rich brings it

    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def test_a_card_depends_on_the_version_only() -> None:
    earlier, later = document(), document(created_at="2026-12-01T00:00:00+00:00")

    assert model_card(earlier, earlier.edge) == model_card(later, later.edge)


def test_a_card_says_how_to_check_a_signature_only_if_the_version_has_one() -> None:
    made = document()

    signed = model_card(made, made.edge, is_signed=True)

    assert "edgetune pull …/latest.json FOLDER --verify-key signing.pub" in signed
    assert "verify-key" not in model_card(made, made.edge)


def test_a_document_lists_its_cards_with_size_and_sha256() -> None:
    made, cards = with_cards(document())

    for each in made.edges:
        (entry,) = each.cards
        card = cards[f"models/sensor-faults/versions/{DIGEST}/{each.artifact.name}/README.md"]
        assert entry == fingerprint_of_bytes(card).entry(CARD)
        assert each.all_files[-1] == entry
    keys = [key for key, _ in made.keys_of(made.edge)]
    assert keys[0] == f"{made.edge.key}/model-Q8_0.gguf"
    assert keys[-1] == f"models/sensor-faults/versions/{DIGEST}/edge-gguf-q8_0/README.md"


def test_lines_of_python_in_the_card_can_be_compiled() -> None:
    made = document()
    for each in made.edges:
        for block in model_card(made, each).split("```python\n")[1:]:
            compile(block.split("```")[0], "card", "exec")


def test_lines_of_a_request_in_the_card_are_json() -> None:
    made = document()
    (body,) = [line.split("'")[1] for line in model_card(made, made.edge).splitlines() if line.startswith("  -d ")]

    assert json.loads(body)["messages"] == [{"role": "user", "content": "…"}]


def test_a_version_of_an_older_release_has_no_cards() -> None:
    older = document()

    assert older.edge.cards == ()
    assert older.edge.all_files == older.edge.files
