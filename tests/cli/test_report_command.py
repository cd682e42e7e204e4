"""`edgetune report` on a folder and a bucket, with and without a status, and on the store of an older release."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.apiserver import REPOSITORY
from support.builders import lora_fine_tune
from support.published import MODEL
from support.reported_runs import publish_two

OLDER = REPOSITORY / "tests" / "cli" / "data" / "store-0.1.0"


class Home:
    """A work folder whose store has two versions of an object."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "home"
        store = LocalFolderStore((self.work / "store" / "team-a").as_uri())
        self.first, self.second = publish_two(store, folder / "local")
        self.object = folder / "object.yaml"
        self.write_object()

    def write_object(self, status: dict[str, Any] | None = None) -> None:
        document = lora_fine_tune(MODEL).build()
        document |= {} if status is None else {"status": status}
        self.object.write_text(yaml.safe_dump(document))

    def report(self, *options: str) -> Result:
        arguments = ["report", "-f", str(self.object), "--workdir", str(self.work), *options]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def title(page: str) -> str:
    return page.partition("<title>")[2].partition("</title>")[0]


def title_of(document: VersionDocument) -> str:
    return f"{MODEL} {document.version[:12]}: training report"


def test_the_report_of_the_newest_version_is_written_to_the_work_folder(home: Home) -> None:
    done = home.report()

    assert done.exit_code == 0, done.output
    path = Path(done.stdout.strip())
    assert path == home.work / "reports" / "team-a" / f"{MODEL}-{home.second.version[:12]}.html"
    assert title(path.read_text()) == title_of(home.second)


def test_a_version_is_chosen_by_its_first_digits_and_compared_with_another(home: Home, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"

    done = home.report("--version", home.first.version[:12], "--compare", home.second.version[:12], "-o", str(page))

    assert done.exit_code == 0, done.output
    assert title(page.read_text()) == title_of(home.first)
    assert f"Compared with version {home.second.version[:12]}" in page.read_text()


def test_the_status_of_the_object_chooses_the_version_and_gives_attempts_and_gpu_time(home: Home) -> None:
    train = home.first.provenance.stages[Stage.TRAIN].digest
    use = {"seconds": 900.0, "failedSeconds": 90.0}
    home.write_object(
        {
            "publication": {"published": True, "version": home.first.version},
            "stages": [{"name": "train", "state": "Succeeded", "digest": train, "attempts": 3, "lostSteps": 7}],
            "gpu": {"total": use, "run": use, "stages": []},
        }
    )

    page = home.report("-o", "-").stdout

    assert title(page) == title_of(home.first)
    assert "GPU time in all runs of the object, 10% of it without progress" in page
    assert '<td role="cell" data-label="attempts">3</td>' in page


def test_charts_are_written_as_images(home: Home, tmp_path: Path) -> None:
    done = home.report("--png", str(tmp_path / "charts"))

    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "charts").iterdir()} >= {"loss.png", "scores.png", "tokens.png"}


def test_an_unknown_version_is_refused_with_those_that_exist(home: Home) -> None:
    done = home.report("--compare", "0" * 12)

    assert done.exit_code == 2
    assert f"--compare: {MODEL} has no version 000000000000; versions, newest first: " in done.stderr
    assert home.second.version[:12] in done.stderr


def test_a_model_without_versions_has_no_report(home: Home, tmp_path: Path) -> None:
    done = home.report("--workdir", str(tmp_path / "empty"))

    assert done.exit_code == 2
    message = f"has no versions: a report needs a run that has reached publish; {MODEL} was not run in {tmp_path}/empty"
    assert f"{message}: run it first, or give its work folder with --workdir" in done.stderr


def test_a_folder_in_place_of_the_file_is_named(home: Home, tmp_path: Path) -> None:
    done = home.report("-o", str(tmp_path))

    assert done.exit_code == 2
    assert f"{tmp_path}: Is a directory" in done.stderr


def test_the_page_is_opened_in_the_browser(home: Home, tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "edgetune_cli",
        "report",
        "-f",
        str(home.object),
        "--workdir",
        str(home.work),
        "--open",
    ]

    done = subprocess.run(
        command, env={**os.environ, "BROWSER": str(browser)}, capture_output=True, text=True, timeout=120, check=True
    )

    assert opened.read_text().strip() == Path(done.stdout.strip()).as_uri()


def test_the_store_of_an_older_release_gives_a_report(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "store", tmp_path / "home" / "store")
    for path in (tmp_path / "home" / "store").rglob("*.json"):
        path.write_text(path.read_text().replace("file:///STORE", (tmp_path / "home" / "store").as_uri()))
    for name in ("object.yaml", "train.jsonl"):
        shutil.copy(OLDER / name, tmp_path)
    shutil.copytree(OLDER / "base", tmp_path / "base")

    arguments = ["report", "-f", str(tmp_path / "object.yaml"), "--workdir", str(tmp_path / "home"), "-o", "-"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    assert "What this report lacks" in done.stdout
