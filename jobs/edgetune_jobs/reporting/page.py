"""The report as one HTML page without scripts, which loads nothing: it works offline, on paper and in a mail."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from edgetune_contract.stages import Stage
from edgetune_contract.values.text import escaped
from edgetune_jobs.reporting.drawing import Chart
from edgetune_jobs.reporting.run_record import RunRecord
from edgetune_jobs.reporting.sections import sections, tiles

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
"""Name of the page in a store."""


def render_report(run: RunRecord, other: RunRecord | None = None) -> bytes:
    """The report of a version as HTML in UTF-8. Equal records give equal bytes.

    Args:
        run: of the version.
        other: of a version to compare it with.
    """
    document = run.document
    warnings = [warning for manifest in run.manifests.values() for warning in manifest.result.warnings]
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            document=document,
            short_version=run.short_version,
            scored_at=_scored_at(run),
            tiles=list(tiles(run)),
            warnings=list(dict.fromkeys(warnings)),
            sections=list(sections(run, other)),
        )
    )
    return page.encode()


def charts_of(run: RunRecord, other: RunRecord | None = None) -> Iterator[Chart]:
    """All charts of the report, in their order."""
    return (chart for section in sections(run, other) for chart in section.charts)


def _scored_at(run: RunRecord) -> str:
    origin = run.document.provenance.stages.get(Stage.EVALUATE)
    return origin.created_at if origin else run.document.created_at


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        """Texts of others show what they contain: a browser reorders letters at bidirectional characters."""
        return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("edgetune_jobs.reporting", "templates"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda chart: Markup(chart.svg())  # noqa: S704 - matplotlib has escaped its texts
    return environment
