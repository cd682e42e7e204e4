"""The table of candidates that ends a run and a description."""

from io import StringIO

from rich.console import Console

from edgetune_cli.candidate_table import candidate_table
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.spec import EdgeFormat

CANDIDATES = (
    Candidate(
        format=EdgeFormat.COMPRESSED_TENSORS_W8A8,
        bytes=167_000_000,
        tokens_per_second=8.1,
        peak_memory_bytes=1_030_000_000,
        limits=("edge.memory", "edge.minTokensPerSecond"),
    ),
    Candidate(
        format=EdgeFormat.BITSANDBYTES_INT8,
        bytes=148_000_000,
        score=0.9896,
        loss=0.0094,
        tokens_per_second=84.8,
        peak_memory_bytes=233_000_000,
        chosen=True,
    ),
    Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=120_000_000, note="not measured: the answer was known before"),
    Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=110_000_000, score=0.5, loss=1.0),
)


def test_each_candidate_has_its_figures_and_its_outcome() -> None:
    console = Console(file=StringIO(), width=160)
    console.print(candidate_table(CANDIDATES))
    written = console.file.getvalue() if isinstance(console.file, StringIO) else ""

    assert [" ".join(line.split()) for line in written.splitlines() if line.strip()] == [
        "Candidates",
        "format size score loss tokens/s peak memory outcome",
        "CompressedTensorsW8A8 167 MB - - 8.1 1.0 GB beyond edge.memory, edge.minTokensPerSecond",
        "BitsAndBytesInt8 148 MB 99.0% 0.009 84.8 233 MB chosen",
        "GGUF-Q8_0 120 MB - - - - not measured: the answer was known before",
        "GGUF-Q8_0 110 MB 50.0% 1.000 - - holds all limits; another one is better",
    ]
