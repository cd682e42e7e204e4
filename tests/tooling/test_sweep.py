"""The table of model types in docs is the one that `make sweep` writes, and has no silent cell."""

import pytest

from edgetune_jobs.errors import InvalidInput
from sweep.model_types import TYPES
from sweep.sweep_models import COLUMNS, TABLE, Row, cell_of, render

_MEANINGS = ("quantized (", "partly (", "trained", "merged", "loaded", "refused: ", "not ", "no ")


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["model type", *COLUMNS]
    return {name: dict(zip(COLUMNS, found, strict=True)) for name, *found in cells[1:]}


def test_the_committed_table_is_what_the_sweep_writes(rows: dict[str, Row]) -> None:
    assert render(rows) == TABLE.read_text()
    assert rows.keys() <= TYPES.keys()


def test_at_least_40_types_have_a_row_without_a_silent_cell(rows: dict[str, Row]) -> None:
    silent = [
        (name, column) for name, row in rows.items() for column in COLUMNS if not row[column].startswith(_MEANINGS)
    ]

    assert len(rows) >= 40
    assert silent == []


def test_a_cell_has_the_reason_without_what_all_cells_repeat() -> None:
    refused = (
        "spec.quantization.formats[0]: GGUF-Q8_0 does not support this model: it is odd; remove the format, or use"
    )

    assert cell_of(InvalidInput(refused)) == "refused: it is odd"
    assert cell_of(InvalidInput("a | b")) == "refused: a / b"
    assert cell_of(KeyError("x")) == "fails (KeyError): 'x'"
