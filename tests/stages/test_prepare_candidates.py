"""prepare finds the candidates of formats Auto, and refuses a limit that none of them can hold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.evaluation.edge.runtimes import missing_runtime
from edgetune_jobs.stages import prepare
from support.workplace import Workplace, make_workplace

AUTO = {"quantization": {"formats": "Auto"}}
LARGE = {"evaluation": {"gates": {"maxEdgeBytes": "1Gi"}}}


@pytest.fixture
def place(random_base: Path, tmp_path: Path) -> Workplace:
    """300 rows, and a base that GGUF supports."""
    place = make_workplace(tmp_path)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").symlink_to(random_base)
    return place


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[EdgeFormat], str | None]], None]:
    """Sets which runtimes are missing."""
    return lambda why: monkeypatch.setattr(prepare, "missing_runtime", why)


def test_every_format_whose_runtime_is_here_is_a_candidate_largest_first(
    place: Workplace, missing: Callable[[Callable[[EdgeFormat], str | None]], None]
) -> None:
    missing(lambda _: None)

    output, _ = place.run(**AUTO, **LARGE)

    sizes = [each.least_bytes for each in output.possible]
    assert {EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0} <= {each.format for each in output.possible}
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0


def test_formats_without_their_runtime_are_named_with_what_to_do(place: Workplace) -> None:
    output, _ = place.run(**AUTO, **LARGE)

    found = output.facts["candidates"]
    assert [each.format for each in output.possible] == [EdgeFormat.BITSANDBYTES_INT8]
    assert f"not GGUF-Q8_0: {missing_runtime(EdgeFormat.GGUF_Q8_0)}" in found
    assert "not CompressedTensorsW8A8: vLLM is not in this image" in found


def test_without_any_runtime_there_is_no_candidate(
    place: Workplace, missing: Callable[[Callable[[EdgeFormat], str | None]], None]
) -> None:
    missing(lambda _: "it is not here")

    refusal = place.refusal(**AUTO, **LARGE)

    assert refusal.startswith(
        "spec.quantization.formats: Auto has no candidate for this base model: BitsAndBytesInt8: "
    )


def test_a_limit_that_the_weights_of_each_format_exceed_is_refused_before_training(
    place: Workplace, missing: Callable[[Callable[[EdgeFormat], str | None]], None]
) -> None:
    missing(lambda each: None if each in (EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0) else "it is not here")
    output, _ = place.run(**AUTO, **LARGE)
    large, small = output.possible

    limit = small.least_bytes - 1
    refusal = place.refusal(**AUTO, evaluation={"gates": {"maxEdgeBytes": str(limit)}})

    assert refusal == (
        f"spec.evaluation.gates.maxEdgeBytes: no format of this base model has at most {limit} ({limit:,} bytes): "
        f"{large.format} has at least {large.least_bytes:,} bytes, {large.least_bytes - limit:,} too many, "
        f"{small.format} has at least {small.least_bytes:,} bytes, 1 too many; raise the limit, or use a smaller base "
        "model"
    )
    place.run(**AUTO, evaluation={"gates": {"maxEdgeBytes": str(small.least_bytes)}})
