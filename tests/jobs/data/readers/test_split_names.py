"""Which files of a folder are trained on, evaluated on, or not read."""

from pathlib import Path
from typing import Any

import pytest

from edgetune_jobs.data.readers.split_names import Split, choose_files, split_of
from edgetune_jobs.errors import InvalidInput
from support.data_rows import instruction_rows, jsonl, read, write_file


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", Split.TRAIN),
        ("train/part-0.jsonl", Split.TRAIN),
        ("rows_Training2.csv", Split.TRAIN),
        ("val.jsonl", Split.VALIDATION),
        ("my-dev.jsonl", Split.VALIDATION),
        ("test/data-00000-of-00001.arrow", Split.TEST),
        ("old/test/train.jsonl", Split.TRAIN),
        ("eval.jsonl", Split.TEST),
        ("latest.jsonl", None),
        ("trainings.jsonl", None),
        ("deviations.csv", None),
        ("Prüftest.csv", None),
    ],
)
def test_a_name_stands_for_a_split_if_it_is_a_word_of_its_own(path: str, split: Split | None) -> None:
    assert split_of(path) is split


@pytest.mark.parametrize(
    ("paths", "rows", "held_out"),
    [
        (["test.csv", "train.csv", "valid.csv"], ["train.csv"], ["valid.csv"]),
        (["test.csv", "train-0.csv", "train-1.csv"], ["train-0.csv", "train-1.csv"], ["test.csv"]),
        (["extra.csv", "train.csv"], ["train.csv"], []),
        (["a.csv", "b.csv"], ["a.csv", "b.csv"], []),
        (["pumps.csv", "pumps-test.csv"], ["pumps.csv"], ["pumps-test.csv"]),
        (["test.csv", "val.csv"], ["test.csv", "val.csv"], []),
    ],
)
def test_training_reads_its_own_split_and_evaluates_on_another(
    paths: list[str], rows: list[str], held_out: list[str]
) -> None:
    chosen = choose_files(paths, to_train=True, has_eval=False)
    assert (list(chosen.rows), list(chosen.held_out)) == (rows, held_out)
    with_eval = choose_files(paths, to_train=True, has_eval=True)
    assert (list(with_eval.rows), list(with_eval.held_out)) == (rows, [])
    assert all(path in " ".join(with_eval.notes) for path in paths if path not in rows)


@pytest.mark.parametrize(
    ("paths", "rows"),
    [
        (["test.csv", "train.csv", "val.csv"], ["val.csv"]),
        (["test.csv", "train.csv"], ["test.csv"]),
        (["train.csv"], ["train.csv"]),
        (["a.csv", "train.csv"], ["a.csv", "train.csv"]),
    ],
)
def test_evaluation_reads_validation_or_test(paths: list[str], rows: list[str]) -> None:
    assert list(choose_files(paths, to_train=False, has_eval=True).rows) == rows


def _rows(count: int, begin: int = 0) -> str:
    return jsonl(instruction_rows(count, begin))


def test_a_folder_of_splits_is_said(tmp_path: Path) -> None:
    write_file(tmp_path / "data/train-0.jsonl", _rows(4))
    write_file(tmp_path / "data/validation-0.jsonl", _rows(2, 50))
    write_file(tmp_path / "data/test-0.jsonl", _rows(2, 70))
    write_file(tmp_path / "dataset_info.json", '{"description": "pumps"}')

    data_set, problems = read(tmp_path)

    assert problems == []
    assert data_set.held_out is not None
    assert (len(data_set.examples), len(data_set.held_out.examples)) == (4, 2)
    assert data_set.warnings == [
        "spec.dataset.train: not rows, but a description of them: dataset_info.json",
        "spec.dataset.train: 1 file for training (train): data/train-0.jsonl",
        "spec.dataset.train: 1 file for evaluation (validation), because spec.dataset.eval is not set: "
        "data/validation-0.jsonl; evalSplitPercent is not used",
        "spec.dataset.train: 1 file is not used: data/test-0.jsonl",
    ]


@pytest.mark.parametrize("splits", [False, True], ids=["Dataset", "DatasetDict"])
def test_a_folder_of_save_to_disk_is_read(tmp_path: Path, splits: bool) -> None:
    import datasets

    train, test = (datasets.Dataset.from_list(instruction_rows(3, begin)) for begin in (0, 50))
    saved: Any = datasets.DatasetDict({"train": train, "test": test}) if splits else train
    saved.save_to_disk(tmp_path / "saved")

    data_set, problems = read(tmp_path / "saved")

    assert problems == []
    assert [example.response for example in data_set.examples] == [f"Fault: bearing wear {n}." for n in range(3)]
    assert (data_set.held_out is not None) == splits
    assert "state.json" in data_set.warnings[0]


def test_what_the_datasets_library_caches_in_a_folder_is_not_read_as_rows(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(instruction_rows(3)).save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(str(tmp_path / "saved")).map(lambda row: row | {"response": "changed"})
    (cache,) = (path.name for path in (tmp_path / "saved").glob("cache-*"))

    data_set, _ = read(tmp_path / "saved")

    assert [example.response for example in data_set.examples] == [f"Fault: bearing wear {n}." for n in range(3)]
    note = "spec.dataset.train: not rows of the data set, but a cache of the datasets library: "
    assert f"{note}{cache}" in data_set.warnings


def test_a_folder_with_descriptions_only_has_no_rows(tmp_path: Path) -> None:
    write_file(tmp_path / "state.json", "{}")
    write_file(tmp_path / "dataset_info.json", "{}")

    with pytest.raises(InvalidInput, match=r"\(found dataset_info\.json, state\.json\)"):
        read(tmp_path)
