"""The chart as a package that names both images by their digests. `make e2e` installs what this makes, as users do."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

CHART = Path("charts/edgetune")
SECTIONS: Mapping[str, str] = {"operator": "image", "jobs": "jobsImage"}
"""The section of the chart's values for each image."""


def repositories(chart: Path) -> dict[str, str]:
    """Name of each image without tag and digest, as the chart's values have it."""
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    return {name: values[section]["repository"] for name, section in SECTIONS.items()}


def package_chart(chart: Path, digests: Mapping[str, str], target: Path, helm: Path) -> Path:
    """Package a chart whose values name images by digest.

    Args:
        chart: folder of the chart, which is not changed.
        digests: of the images' manifests, `sha256:…`, for the names in SECTIONS.
        target: folder of the package.
        helm: the program.

    Returns:
        Path of the package, `<chart>-<version>.tgz`.

    Raises:
        RuntimeError: helm refuses the chart.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / chart.name
        shutil.copytree(chart, pinned)
        _pin(pinned, digests)
        command = [str(helm), "package", str(pinned), "--destination", str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"helm package: {done.stderr.strip()}")
    return target / Path(done.stdout.strip().rpartition("saved it to: ")[2]).name


def _pin(chart: Path, digests: Mapping[str, str]) -> None:
    """Write digests into the values, of which all comments stay, and a list of the images for Artifact Hub."""
    path = chart / "values.yaml"
    text = path.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        pattern = rf'(?ms)^({section}:\n(?:  [^\n]*\n)*?  digest: )""$'
        text, count = re.subn(pattern, rf'\g<1>"{digests[name]}"', text)
        if count != 1:
            raise LookupError(f"{path} has no empty `digest` in `{section}`")
    path.write_text(text, encoding="utf-8")
    found = repositories(chart)
    images = "".join(f"    - {{name: {name}, image: {found[name]}@{digests[name]}}}\n" for name in SECTIONS)
    with (chart / "Chart.yaml").open("a", encoding="utf-8") as description:
        # The file ends with its annotations.
        description.write(f"  artifacthub.io/images: |\n{images}")
