"""The report that publish writes beside the document of a version."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgetune_contract.request import Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting.page import REPORT, render_report
from edgetune_jobs.reporting.run_record import ReadFile, RunRecord, read_run
from edgetune_jobs.store.files import fingerprint_of_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reported:
    """A version's document with its report."""

    document: VersionDocument
    run: RunRecord
    files: Mapping[str, bytes]
    """The report by its key in the store; empty if it could not be made."""

    warnings: Sequence[str] = ()


def with_report(document: VersionDocument, manifests: Mapping[Stage, Manifest], read: ReadFile) -> Reported:
    """Make the report of a version that is about to be written. Without it, the version is published with a warning.

    Raises:
        AccessDenied, TransientError: the store cannot be read.
    """
    run = read_run(document, manifests, read)
    try:
        page = render_report(run)
    except Exception as error:
        logger.exception("the report was not made")
        return Reported(
            document, run, {}, (f"the report was not made ({type(error).__name__}: {error}); report this bug",)
        )
    entry = fingerprint_of_bytes(page).entry(REPORT)
    reported = document.model_copy(update={"report": entry})
    return Reported(reported, replace(run, document=reported), {f"{document.reports_key}/{REPORT}": page})
