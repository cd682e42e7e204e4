"""Pictures of commands in a terminal, as SVG: what a command prints, in its colours, and no font or file of others.

`make pictures` writes docs/data-check.svg.
"""

import html
import io
import os
import subprocess
import sys

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from support.apiserver import REPOSITORY

DOCS_PICTURE = REPOSITORY / "docs" / "data-check.svg"
COMMAND = ("data", "check", "examples/sensor-faults/train.jsonl", "--eval", "examples/sensor-faults/eval.jsonl")
COLUMNS = 100
# As Rich's own, without the font that it loads from the network.
_FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="LABEL">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
<rect fill="#0c0c0c" x="1" y="1" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, 20)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(arguments: tuple[str, ...]) -> str:
    """Run `edgetune` with arguments in the repository, and draw the command and what it prints."""
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "NO_COLOR": ""}
    ran = subprocess.run(
        [sys.executable, "-m", "edgetune_cli", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return drawn(" ".join(("edgetune", *arguments)), ran.stdout)


def drawn(command: str, printed: str) -> str:
    """A terminal with a command and what it printed, with its escape sequences, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(printed.rstrip("\n")))
    svg_format = _FORMAT.replace("LABEL", html.escape(command))
    svg = console.export_svg(theme=MONOKAI, code_format=svg_format, unique_id="terminal")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    DOCS_PICTURE.write_text(picture(COMMAND), encoding="utf-8")
