"""The files of examples/edge-device: systemd and an API server accept them, and their commands pull a model."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune_contract.spec import EdgeFormat
from support.apiserver import REPOSITORY
from support.devices import address, is_version, pull
from support.published import PublishedModel

EXAMPLES = REPOSITORY / "examples/edge-device"
MANIFESTS = ("daemon-set.yaml", "init-container.yaml")


def command(example: str) -> list[str]:
    """The arguments of `edgetune pull` in an example."""
    text = (EXAMPLES / example).read_text(encoding="utf-8")
    if example.endswith(".service"):
        (line,) = re.findall(r"^ExecStart=\S+/edgetune pull (.*)$", text, re.MULTILINE)
        (uri,) = re.findall(r"^Environment=MODEL=(.*)$", text, re.MULTILINE)
        return shlex.split(line.replace("${MODEL}", uri))
    pod: dict[str, Any] = yaml.safe_load(text)["spec"]["template"]["spec"]
    container = next(each for each in pod["containers"] + pod.get("initContainers", []) if each["name"] == "pull")
    program, subcommand, *arguments = container["command"]
    assert (program, subcommand) == ("edgetune", "pull")
    return [str(each) for each in arguments]


@pytest.mark.parametrize("example", ["edgetune-pull.service", *MANIFESTS])
def test_the_command_of_an_example_pulls_a_model(example: str, model: PublishedModel, device: Path) -> None:
    document = model.publish()
    uri, _, *options = command(example)
    assert re.fullmatch(r"(https|s3)://\S+/models/[^/]+/latest\.json", uri)
    assert options[options.index("--format") + 1] == EdgeFormat.GGUF_Q8_0
    options[options.index("--format") + 1] = EdgeFormat.BITSANDBYTES_INT8
    if "--watch" in options:
        assert options.pop(options.index("--watch") + 1) == "10m"
        options.remove("--watch")
    if "--on-change" in options:
        options[options.index("--on-change") + 1] = "true"

    pull(address(model), device, *options)

    assert is_version(device, document)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "edgetune-pull.service"
    text = (EXAMPLES / unit.name).read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/edgetune/bin/edgetune", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
