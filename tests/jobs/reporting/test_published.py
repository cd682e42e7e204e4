"""The report beside the document of a version: written by publish, verified, promoted and pruned with it."""

from pathlib import Path

import pytest

from edgetune_contract.version import VersionDocument
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.publishing.promotion import Stores, promote
from edgetune_jobs.publishing.verification import verify
from edgetune_jobs.reporting import published
from edgetune_jobs.reporting.published import with_report
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import Store
from support.published import MODEL, PublishedModel


def nothing(key: str) -> bytes | None:
    """A store that has lost all files of the run."""
    return None if key else b""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalFolderStore((tmp_path / "store").as_uri())


@pytest.fixture
def document(store: Store, tmp_path: Path) -> VersionDocument:
    """A published version with a report."""
    model = PublishedModel(store, tmp_path / "local")
    reported = with_report(model.publish_run(), {}, nothing)
    model.publisher.publish(reported.document, reported.files)
    return reported.document


def address(store: Store) -> ModelAddress:
    return ModelAddress(store.uri, MODEL, None)


def test_the_document_has_the_fingerprint_of_the_report_beside_it(store: Store, document: VersionDocument) -> None:
    key = f"models/{MODEL}/versions/{document.version}/report.html"
    found = store.read(key)

    assert found is not None
    assert document.report is not None
    assert (document.report.path, document.report.bytes) == ("report.html", len(found.data))
    assert b"What this report lacks" in found.data
    verification = verify(store, address(store))
    assert verification.problems == ()
    assert "report" in [check.artifact.name for check in verification.artifacts]


def test_a_report_that_was_changed_or_removed_is_a_problem_of_the_version(
    store: Store, document: VersionDocument
) -> None:
    key = f"{document.reports_key}/report.html"

    store.put(key, b"all is well")
    assert any("report.html" in problem for problem in verify(store, address(store)).problems)
    store.delete(key)
    assert any("report.html: is missing" in problem for problem in verify(store, address(store)).problems)


def test_the_report_is_promoted_with_its_version(store: Store, document: VersionDocument, tmp_path: Path) -> None:
    target = LocalFolderStore((tmp_path / "prod").as_uri())

    promote(Stores(store, target, MODEL, tmp_path), None, edge_only=False, say=lambda _: None)

    assert target.read(f"{document.reports_key}/report.html") == store.read(f"{document.reports_key}/report.html")
    assert verify(target, address(target)).problems == ()


def test_a_chart_that_cannot_be_drawn_keeps_no_model_from_being_published(
    document: VersionDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> bytes:
        raise ZeroDivisionError("no room for a bar")

    monkeypatch.setattr(published, "render_report", fail)

    reported = with_report(document.model_copy(update={"report": None}), {}, nothing)

    assert (reported.document.report, reported.files) == (None, {})
    assert reported.warnings == ("the report was not made (ZeroDivisionError: no room for a bar); report this bug",)
