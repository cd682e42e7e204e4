"""docs/data.md names everything that is read."""

import re
from pathlib import Path

from edgetune_jobs.data import examples
from edgetune_jobs.data.chat import messages, usage
from edgetune_jobs.data.readers import columnar_process, json_rows, row_errors, rows, split_names
from edgetune_jobs.store.sources.source import DATA_SUFFIXES

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_names_all_files_splits_columns_roles_and_fields() -> None:
    names = {
        *DATA_SUFFIXES,
        *split_names._SPLIT_OF,
        *split_names._DESCRIPTIONS,
        *messages._ROLES,
        *messages._SHAREGPT_ROLES,
        *usage._SAID,
        *("conversations", examples._TOOLS, examples._SYSTEM_COLUMN, examples._SHAREGPT_MESSAGES),
    }
    assert names - set(re.findall(r"`([^`\n]+)`", PAGE.replace("```", ""))) == set()


def test_the_page_has_the_limits() -> None:
    text = " ".join(PAGE.split())
    for limit in (
        f"{rows.MAX_ROW_BYTES >> 20} MiB per line",
        f"{json_rows.MAX_JSON_BYTES >> 30} GiB and {json_rows.MAX_JSON_VALUES // 10**6} million values",
        f"if {columnar_process._BATCH_ROWS} rows need more than {columnar_process.MAX_MEMORY_BYTES >> 20} MiB",
        f"{columnar_process.MAX_SECONDS} seconds",
        f"more than {columnar_process.MAX_RATIO} times as large",
        f"larger than {columnar_process._SMALLEST_BUDGET >> 20} MiB",
        f"larger than {columnar_process._LARGEST_BUDGET >> 30} GiB",
        f"after {row_errors.MOST_COUNTED:,} invalid rows",
    ):
        assert limit in text, limit
