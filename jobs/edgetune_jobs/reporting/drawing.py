"""Charts by matplotlib: as SVG that follows the colours of the page, and as PNG on white.

matplotlib is one of the few chart libraries that draw both without a browser. A chart takes about 20 kB in the page,
where the script of an interactive library would take megabytes.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE: Mapping[str, str] = {
    "ink": "#1d2530",
    "muted": "#5a6573",
    "grid": "#e1e6ec",
    "surface": "#fefefe",
    "base": "#7d8896",
    "tuned": "#2b6cd9",
    "merged": "#8549c7",
    "edge": "#0b8567",
    "accent": "#a34a0a",
    "bad": "#c22f3c",
}
"""Colours by role, on white. Each is used by one role only: the page replaces it by its own variable of this name."""

_WIDTH_INCHES = 4.4
_PNG_DOTS_PER_INCH = 200
_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.edgecolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": PALETTE["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.8,
    "legend.borderaxespad": 0.2,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.labelcolor": PALETTE["ink"],
    "lines.linewidth": 1.8,
    "text.color": PALETTE["ink"],
    # Names come from others: a dollar sign in them is no formula.
    "text.parse_math": False,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["ink"],
    # Text stays text: it is found, copied, and set in the font of the page. Equal charts have equal bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "edgetune",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Chart:
    """One chart with its words."""

    name: str
    """Of its file, without a suffix, and of the ids in its SVG."""

    title: str
    caption: str
    """What it shows, in a sentence with figures: for those who do not see it, too."""

    draw: "Callable[[Axes], None]"
    height: float = 2.7
    """In inches, of a width of 4.4 inches."""

    def svg(self) -> str:
        """The chart as an `<svg>` element whose colours are CSS variables, such as var(--tuned)."""
        with _drawn(self) as figure:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
        return _for_page(buffer.getvalue(), self.name)

    def png(self) -> bytes:
        """The chart with its title as a PNG image of about 880 by 540 pixels."""
        with _drawn(self) as figure:
            figure.axes[0].set_title(self.title, pad=10)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_PNG_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def _drawn(chart: Chart) -> "Iterator[Figure]":
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH_INCHES, chart.height), layout="constrained")
        chart.draw(figure.subplots())
        yield figure


def _for_page(document: str, name: str) -> str:
    """The element of an SVG document, which shares a page with others."""
    svg = document[document.index("<svg") :].rstrip()
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="[^"]+"', head)
    head = f'<svg {view_box[0] if view_box else ""} xmlns:xlink="http://www.w3.org/1999/xlink"'
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for role, colour in PALETTE.items():
        body = body.replace(colour, f"var(--{role})")
    return f'{head} aria-hidden="true" focusable="false">{body}'
