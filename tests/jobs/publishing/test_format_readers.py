"""Checks of safetensors and GGUF files that are streamed in chunks."""

import struct
from pathlib import Path

import pytest

from edgetune_jobs.publishing.format_readers import reader_of
from support.published import edge_folder, truncated_weights

WEIGHTS = "model.safetensors"


def problem_of(path: str, content: bytes, chunk: int) -> str:
    """The problem that a reader finds in a file that is streamed in chunks."""
    reader = reader_of(path)
    reader.write(b"the beginning of a broken download")
    reader.restart()
    for start in range(0, len(content), chunk):
        reader.write(content[start : start + chunk])
    return reader.problem(len(content))


@pytest.mark.parametrize("chunk", [1, 7, 8, 9, 1000])
def test_a_header_is_read_in_chunks_of_any_size(tmp_path: Path, chunk: int) -> None:
    intact = (edge_folder(tmp_path / "edge", 1) / WEIGHTS).read_bytes()

    assert problem_of(WEIGHTS, intact, chunk) == ""
    assert "may be truncated" in problem_of(WEIGHTS, truncated_weights(), chunk)
    assert "too few for a header" in problem_of(WEIGHTS, b"123", chunk)
    assert "the header length is 9,223,372,036,854,775,807 bytes" in problem_of(
        WEIGHTS, struct.pack("<Q", 2**63 - 1) + b"{}", chunk
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGUF\x03\0\0\0rest", ""),
        (b"GGUF\x09\0\0\0", "m.gguf is not a GGUF file of version 2 or 3"),
        (b"GGU", "m.gguf is not a GGUF file of version 2 or 3"),
    ],
)
def test_a_gguf_file_is_recognized_by_its_first_bytes(content: bytes, problem: str) -> None:
    assert problem_of("m.gguf", content, 3) == problem
