"""What the readers of the formats say of a file that they see once, piece by piece."""

import struct
from pathlib import Path

import pytest

from edgetune_jobs.publishing.format_readers import reader_of
from support.published import edge_folder, lying_weights

WEIGHTS = "model.safetensors"


def read(path: str, content: bytes, piece: int) -> str:
    """What a format's reader says of a file that comes in pieces."""
    reader = reader_of(path)
    reader.write(b"the beginning of an answer that was cut")
    reader.restart()
    for start in range(0, len(content), piece):
        reader.write(content[start : start + piece])
    return reader.problem(len(content))


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 1000])
def test_a_header_is_read_in_pieces_of_any_size(tmp_path: Path, piece: int) -> None:
    sound = (edge_folder(tmp_path / "edge", 1) / WEIGHTS).read_bytes()

    assert read(WEIGHTS, sound, piece) == ""
    assert "may be truncated" in read(WEIGHTS, lying_weights(), piece)
    assert "too few for a header" in read(WEIGHTS, b"123", piece)
    assert "the header length is 9,223,372,036,854,775,807 bytes" in read(
        WEIGHTS, struct.pack("<Q", 2**63 - 1) + b"{}", piece
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGUF\x03\0\0\0rest", ""),
        (b"GGUF\x09\0\0\0", "m.gguf is not a GGUF file of version 2 or 3"),
        (b"GGU", "m.gguf is not a GGUF file of version 2 or 3"),
    ],
)
def test_a_gguf_file_is_known_by_its_first_bytes(content: bytes, problem: str) -> None:
    assert read("m.gguf", content, 3) == problem
