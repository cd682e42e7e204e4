"""Writes the model card of one edge model of a version, from the version's document alone."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from edgetune_contract.digest import cards_key
from edgetune_contract.pipeline import ADAPTER, BASE, EDGE, MERGED, TUNED
from edgetune_contract.spec import CHAT_TEMPLATE, HUB_SCHEME, EdgeFormat, RowFormat
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_points, format_share
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.publishing.model_card.markdown import code, code_block, escaped, table
from edgetune_jobs.publishing.model_card.running import ways_to_run
from edgetune_jobs.store.files import fingerprint_of_bytes
from edgetune_jobs.store.sources.licence import LICENCE_FACT, LICENCE_FILE_FACT, UNKNOWN

CARD = "README.md"
_TITLES = {BASE: "base", TUNED: "tuned: base with adapter", MERGED: "merged, before quantization"}
_TAGS: Mapping[EdgeFormat | None, tuple[str, ...]] = {
    EdgeFormat.BITSANDBYTES_INT8: ("bitsandbytes", "8-bit"),
    EdgeFormat.COMPRESSED_TENSORS_W8A8: ("compressed-tensors", "w8a8", "vllm"),
}


def with_cards(document: VersionDocument, *, is_signed: bool = False) -> tuple[VersionDocument, dict[str, bytes]]:
    """The document with the cards of its edge models, and the cards by their keys in the store.

    Args:
        document: the version.
        is_signed: whether it is published with a signature.
    """
    cards: dict[str, bytes] = {}
    edges = []
    for edge in document.edges:
        card = model_card(document, edge, is_signed=is_signed).encode()
        cards[f"{cards_key(document.model, document.version, edge.artifact.name)}/{CARD}"] = card
        edges.append(edge.model_copy(update={"cards": (fingerprint_of_bytes(card).entry(CARD),)}))
    return document.model_copy(update={"edge": edges[0], "further_edges": tuple(edges[1:])}), cards


def model_card(document: VersionDocument, edge: EdgeModel, *, is_signed: bool = False) -> str:
    """README.md of an edge model: front matter in YAML as model hubs read it, then Markdown.

    It has nothing that depends on when or where the version is published: it is part of the version.
    """
    sections = [*_sections(document, edge), *(_signature() if is_signed else ())]
    return f"---\n{_front_matter(document, edge)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(document: VersionDocument, edge: EdgeModel) -> str:
    about: dict[str, Any] = {"license": _licence(document)}
    uri = str(_parameters(document, "baseModel").get("uri", ""))
    if uri.startswith(HUB_SCHEME):
        about["base_model"] = uri.removeprefix(HUB_SCHEME)
        about["base_model_relation"] = "finetune"
    gguf = any(entry.path.endswith(".gguf") for entry in edge.files)
    about["library_name"] = "gguf" if gguf else "transformers"
    about["pipeline_tag"] = "text-generation"
    method = str(document.provenance.parameters.get("method", "")).lower()
    kind = ("gguf", "llama.cpp", "ollama") if gguf else _TAGS.get(_format_of(edge), ())
    about["tags"] = ["edgetune", *filter(None, [method]), *kind]
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)


def _sections(document: VersionDocument, edge: EdgeModel) -> Iterator[str]:
    base = str(_parameters(document, "baseModel").get("uri", "unknown"))
    method = str(document.provenance.parameters.get("method", "LoRA"))
    yield f"# {escaped(document.model)}"
    yield (
        f"{code(base)}, tuned by {escaped(method)} and written as {code(_format_of(edge) or edge.artifact.name)} by "
        "Edgetune. Run the lines below in the folder with these files."
    )
    yield "## Run it"
    for runtime, (language, lines) in ways_to_run(edge, document.model).items():
        yield f"{runtime}:\n\n{code_block(lines, language)}"
    yield "## Prompt"
    yield from _prompt(document)
    yield "## Scores"
    yield from _scores(document, edge)
    yield from _speed(document, edge)
    yield "## Training"
    yield table(("", ""), _training(document))
    yield "## Licence"
    yield _about_licence(document, base)
    yield "## Provenance"
    yield from _provenance(document, edge)


def _prompt(document: VersionDocument) -> Iterator[str]:
    dataset = _parameters(document, "dataset")
    template, row_format = str(dataset.get("template", "")), dataset.get("format")
    if row_format == RowFormat.TEXT:
        yield "The model was trained on texts without prompts: it continues a text."
    elif row_format == RowFormat.CHAT or template == CHAT_TEMPLATE:
        yield "The model was trained with the chat template of its base, which is in the files of the tokenizer."
    else:
        yield (
            "The model was trained on prompts of this form. Its chat template writes it: send the instruction as the "
            "message of a user."
        )
        yield code_block(template, "text")


def _scores(document: VersionDocument, edge: EdgeModel) -> Iterator[str]:
    scores = document.scores
    sizes = _sizes(document)
    rows = [
        (
            _title(document, name),
            format_bytes(sizes.get(name)),
            *(format_share(share) for share in (one.keyword_recall, one.exact_match)),
            "" if one.loss is None else f"{one.loss:.3f}",
        )
        for name, one in scores.details.items()
    ]
    yield f"On the same {scores.examples:,} held-out rows, with greedy decoding:"
    yield table(("model", "size", "keyword recall", "exact match", "loss"), rows)
    own = scores.details.get(_name_in_scores(document, edge))
    if scores.tuned is not None and own is not None and own.score is not None:
        cost = format_points(scores.tuned - own.score)
        yield f"Merging and quantizing cost {cost} of the tuned model's score."
    if scores.gained_nothing:
        yield "Training gained nothing: on these rows, the tuned model is not better than the base model."


def _speed(document: VersionDocument, edge: EdgeModel) -> Iterator[str]:
    measured = document.measurement
    speed = None if measured is None else measured.by_model.get(_name_in_scores(document, edge))
    if measured is None or speed is None or speed.generation_tokens_per_second is None:
        return
    yield (
        f"On {measured.threads} threads of {escaped(measured.cpu)}, {escaped(speed.runtime)} generated "
        f"{speed.generation_tokens_per_second:.1f} tokens per second, with a peak memory of "
        f"{format_bytes(speed.peak_memory_bytes)}."
    )


def _training(document: VersionDocument) -> Iterator[tuple[str, str]]:
    provenance = document.provenance
    base, dataset = _parameters(document, "baseModel"), _parameters(document, "dataset")
    prepared = provenance.stages[Stage.PREPARE].metrics if Stage.PREPARE in provenance.stages else {}
    revision = base.get("revision")
    yield "base", code(str(base.get("uri", ""))) + (f" at {code(str(revision))}" if revision else "")
    yield "base, SHA-256 of its files", code(provenance.resolved.base)
    for name, digest, rows in (
        ("train", provenance.resolved.train, "trainRows" if "trainRows" in prepared else "trainExamples"),
        ("eval", provenance.resolved.eval, "evalExamples"),
    ):
        source = dataset.get(name)
        uri = source.get("uri") if isinstance(source, Mapping) else None
        number = f", {prepared[rows]:,.0f} rows" if rows in prepared else ""
        if uri:
            yield f"data, {name}", f"{code(str(uri))}{number}"
        if digest:
            yield f"data, {name}, SHA-256", code(digest)
    yield "method", escaped(str(provenance.parameters.get("method", "")))
    for section in ("lora", "training", "merge"):
        for name, value in _parameters(document, section).items():
            if not isinstance(value, Mapping):
                yield f"{section}.{escaped(name)}", code(str(value))


def _about_licence(document: VersionDocument, base: str) -> str:
    licence, file = _fact(document, LICENCE_FACT), _fact(document, LICENCE_FILE_FACT)
    if not licence:
        return f"The licence of the base {code(base)} was not recorded by the release that prepared the data."
    if licence == UNKNOWN:
        return (
            f"The licence of the base {code(base)} is unknown: it has no licence file. Ask its owner what you may do "
            "with a model that was made from it."
        )
    return f"The base {code(base)} has the licence {code(licence)}, by its file {code(file)}. It applies to this model."


def _provenance(document: VersionDocument, edge: EdgeModel) -> Iterator[str]:
    stages = document.provenance.stages
    yield table(
        ("", ""),
        [
            ("model", f"{escaped(document.model)} in namespace {escaped(document.namespace)}"),
            ("version", code(document.version)),
            (f"{edge.artifact.name}, SHA-256 of its list of files", code(edge.artifact.sha256)),
        ],
    )
    rows = [
        (stage.value, code(origin.digest), code(origin.image) if origin.image else "")
        for stage, origin in stages.items()
    ]
    yield table(("stage", "digest of its inputs", "image"), rows)
    libraries = stages[Stage.QUANTIZE].libraries if Stage.QUANTIZE in stages else {}
    if libraries:
        yield f"Libraries: {', '.join(f'{escaped(name)} {escaped(number)}' for name, number in libraries.items())}."
    yield "`edgetune verify` compares the files in the store with the version."


def _signature() -> Iterator[str]:
    yield "## Signature"
    yield (
        "The version is signed. With the publisher's public key, `edgetune verify` and `edgetune pull` check it, and "
        "take nothing that another key has signed. In a folder that `edgetune export` wrote, model-signing checks the "
        "files without Edgetune."
    )
    lines = (
        "edgetune verify …/latest.json --verify-key signing.pub",
        "edgetune pull …/latest.json FOLDER --verify-key signing.pub",
        "model_signing verify key . --signature model.sig --public_key signing.pub",
    )
    yield code_block("\n".join(lines) + "\n", "sh")


def _parameters(document: VersionDocument, section: str) -> Mapping[str, Any]:
    """A section of the spec; empty if the document has none, as its release may have had other ones."""
    value = document.provenance.parameters.get(section)
    return value if isinstance(value, Mapping) else {}


def _fact(document: VersionDocument, name: str) -> str:
    origin = document.provenance.stages.get(Stage.PREPARE)
    return "" if origin is None else origin.facts.get(name, "")


def _licence(document: VersionDocument) -> str:
    return _fact(document, LICENCE_FACT) or UNKNOWN


def _format_of(edge: EdgeModel) -> EdgeFormat | None:
    return next((each for each in EdgeFormat if each.artifact == edge.artifact.name), None)


def _name_in_scores(document: VersionDocument, edge: EdgeModel) -> str:
    return EDGE if edge.artifact == document.edge.artifact else edge.artifact.name


def _title(document: VersionDocument, name: str) -> str:
    return _TITLES.get(name) or (document.edge.artifact.name if name == EDGE else escaped(name))


def _sizes(document: VersionDocument) -> Mapping[str, int]:
    """Sizes in bytes of the models by their names in the scores."""
    sizes: dict[str, int] = {artifact.name: artifact.bytes for artifact in document.artifacts}
    origin = document.provenance.stages.get(Stage.PREPARE)
    if origin is not None and "baseBytes" in origin.metrics:
        sizes[BASE] = int(origin.metrics["baseBytes"])
    if ADAPTER in sizes:
        sizes[TUNED] = sizes[ADAPTER]
    return {**sizes, EDGE: document.edge.artifact.bytes}
