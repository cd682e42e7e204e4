"""The page: what is on it, that texts of others stay texts, and that it loads nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from edgetune_contract.request import Scores
from edgetune_contract.stages import Stage
from edgetune_jobs.reporting.page import charts_of, render_report
from edgetune_jobs.reporting.run_record import RowAnswers, RunRecord

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>"\' {{ 7 * 7 }} \u202eevil'


class Elements(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for found, attributes in self.found if found == tag)


@pytest.fixture(scope="module")
def page(runs: tuple[RunRecord, RunRecord]) -> bytes:
    """The report of the newer version, compared with the older one."""
    return render_report(*runs)


def test_all_sections_are_on_the_page_in_their_order(page: bytes) -> None:
    elements = Elements(page)

    assert [section["id"] for section in elements.named("section")] == [
        *("comparison", "gates", "scores", "answers", "training", "data", "costs", "time", "provenance"),
    ]
    assert [figure["id"] for figure in elements.named("figure")] == [
        *("chart-scores", "chart-loss", "chart-learning-rate", "chart-gradient-norm", "chart-tokens"),
        *("chart-sizes", "chart-speed", "chart-memory", "chart-time", "chart-gpu-time"),
    ]


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({}, "The spec sets no gates"),
        ({"maxEdgeBytes": "1Gi"}, "No gate is set on the score"),
        ({"maxEdgeBytes": "1Gi", "minImprovement": 0.05}, ""),
    ],
)
def test_a_page_says_that_no_gate_is_set_on_the_score(
    runs: tuple[RunRecord, RunRecord], gates: dict[str, object], said: str
) -> None:
    provenance = runs[0].document.provenance
    parameters = {**provenance.parameters, "evaluation": {"gates": gates}}
    document = runs[0].document.model_copy(
        update={"provenance": provenance.model_copy(update={"parameters": parameters})}
    )

    text = Elements(render_report(replace(runs[0], document=document))).text

    sentences = [each for each in ("The spec sets no gates", "No gate is set on the score") if each in text]
    assert sentences == ([said] if said else [])


def test_a_page_that_was_made_without_the_status_says_where_wasted_gpu_time_is(
    runs: tuple[RunRecord, RunRecord],
) -> None:
    run, without = runs[0], replace(runs[0], usage=None)
    document = run.document
    live = f"kubectl get lft {document.model} -n {document.namespace} -o yaml | edgetune report -f /dev/stdin"

    assert live in Elements(render_report(without)).text
    assert "status of the object" not in Elements(render_report(run)).text


def test_the_page_has_no_scripts_and_loads_nothing(page: bytes) -> None:
    elements = Elements(page)

    assert list(elements.named("script")) == []
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    policy = next(each for each in elements.named("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_every_id_is_there_once_and_every_reference_has_its_id(page: bytes) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page.decode())
    references = re.findall(r'(?:url\(#|href="#|aria-describedby="|aria-labelledby=")([^)"]+)', page.decode())

    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_texts_of_others_stay_texts(run: RunRecord) -> None:
    row = RowAnswers.model_validate(
        {"row": 0, "prompt": HOSTILE, "reference": HOSTILE, "scores": {"edge": 0}, "edge": HOSTILE, HOSTILE: HOSTILE}
    )
    manifest = run.manifests[Stage.TRAIN]
    warned = manifest.model_copy(update={"result": manifest.result.model_copy(update={"warnings": (HOSTILE,)})})
    hostile = replace(
        run,
        answers=[row],
        manifests={Stage.TRAIN: warned},
        document=run.document.model_copy(update={"namespace": HOSTILE, "published": False, "refusals": (HOSTILE,)}),
        gaps=(HOSTILE,),
    )

    page = render_report(hostile, hostile)
    found = Elements(page)

    assert list(found.named("script")) == list(found.named("img")) == []
    assert "\u202e" not in found.text, "a browser would reorder the letters behind it"
    assert found.text.count("<script>alert") >= 8
    assert "{{ 7 * 7 }}" in found.text
    assert "\\u202eevil" in found.text


def test_equal_records_give_equal_bytes(runs: tuple[RunRecord, RunRecord], page: bytes) -> None:
    assert render_report(*runs) == page


def test_a_refused_version_says_so_with_the_reason(run: RunRecord) -> None:
    refusal = "maxDrop: the edge model scores 0.979"
    refused = replace(run, document=run.document.model_copy(update={"published": False, "refusals": (refusal,)}))

    text = Elements(render_report(refused)).text

    assert "Refused by its gates" in text
    assert refusal in text


def test_a_store_without_files_gives_a_page_that_lists_what_it_lacks(run: RunRecord) -> None:
    empty = RunRecord(run.document, {}, gaps=("loss by step: the store has no metrics.jsonl of the artifact adapter",))

    page = Elements(render_report(empty))

    assert [section["id"] for section in page.named("section")] == [
        *("gates", "scores", "training", "costs", "time", "provenance", "gaps"),
    ]
    assert "the store has no metrics.jsonl of the artifact adapter" in page.text


def test_texts_without_prompts_are_compared_by_their_loss(run: RunRecord) -> None:
    details = {
        name: each.model_copy(update={"keyword_recall": None, "exact_match": None})
        for name, each in run.document.scores.details.items()
    }
    scores = type(run.document.scores)(examples=96, details=details)
    texts = replace(run, document=run.document.model_copy(update={"scores": scores}), answers=[])

    assert next(chart.name for chart in charts_of(texts)) == "evaluation-loss"
    render_report(texts)


@pytest.mark.parametrize(("base", "is_said"), [(0.4, False), (0.5, True), (0.6, True)])
def test_a_training_that_gained_nothing_is_said(run: RunRecord, base: float, is_said: bool) -> None:
    scores = Scores(base=base, tuned=0.5, edge=0.5, examples=96)
    page = render_report(replace(run, document=run.document.model_copy(update={"scores": scores})))

    assert (b"Training gained nothing: on these rows" in page) is is_said


def test_images_have_the_title_and_a_readable_size(run: RunRecord) -> None:
    image = next(chart for chart in charts_of(run) if chart.name == "loss").png()

    assert image.startswith(b"\x89PNG")
    assert int.from_bytes(image[16:20]) == 880
    assert len(image) < 200_000


@pytest.mark.parametrize("name", ["loss", "scores", "tokens"])
def test_charts_take_their_colours_from_the_page(run: RunRecord, name: str) -> None:
    svg = next(chart for chart in charts_of(run) if chart.name == name).svg()

    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set(), "a colour that would not follow the dark scheme"
    assert "var(--ink)" in svg
    assert "<style" not in svg, "it would apply to the whole page"
