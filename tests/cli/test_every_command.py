"""What holds for every command of `edgetune` and `kubectl edgetune`: options, streams, suggestions, completion."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_cli.kubectl.__main__ import app as kubectl_app

RUNNER = CliRunner()
PRINTS_NO_DATA = {"init", "delete", "logs", "open", "pull", "report"}
ACTIONS = {"logs", "wait", "retry", "suspend", "resume", "pin", "unpin"}


def commands(of: typer.Typer) -> dict[str, Any]:
    """Commands by their words, such as "data check"."""
    found: dict[str, Any] = {}
    groups = [("", typer.main.get_command(of))]
    while groups:
        prefix, group = groups.pop()
        for name, command in vars(group)["commands"].items():
            if "commands" in vars(command):
                groups.append((f"{prefix}{name} ", command))
            else:
                found[f"{prefix}{name}"] = command
    return found


EVERY = [(each, name) for each in (app, kubectl_app) for name in commands(each)]


@pytest.mark.parametrize(("of", "name"), EVERY)
def test_every_command_has_short_help_and_the_options_quiet_and_verbose(of: typer.Typer, name: str) -> None:
    done = RUNNER.invoke(of, [*name.split(), "-h"], env={"COLUMNS": "200"})

    assert done.exit_code == 0
    assert all(option in done.stdout for option in ("--help", "--quiet", "--verbose"))
    long = RUNNER.invoke(of, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert long.stdout == done.stdout


@pytest.mark.parametrize(("of", "name"), EVERY)
def test_every_command_that_prints_data_prints_json_and_yaml(of: typer.Typer, name: str) -> None:
    options = {option: each for each in commands(of)[name].params for option in each.opts}

    if name in (PRINTS_NO_DATA if of is app else ACTIONS):
        assert "--output" not in options
    else:
        refused = RUNNER.invoke(of, [*name.split(), "--output", "jsno"], env={"COLUMNS": "200"})
        assert {"-o", "--output"} <= options.keys()
        assert refused.exit_code == 2
        assert all(f"'{each}'" in refused.stderr for each in ("text", "json", "yaml"))
        assert "Did you mean 'json'?" in refused.stderr


def test_the_version_is_that_of_the_package() -> None:
    done = RUNNER.invoke(app, ["--version"])

    assert (done.exit_code, done.stdout) == (0, f"edgetune {metadata.version('edgetune')}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["pln"], "'plan'"), (["plan", "--filname", "x"], "--filename"), (["dat", "check"], "data")],
)
def test_a_mistyped_command_or_option_is_answered_with_the_one_that_was_meant(arguments: list[str], meant: str) -> None:
    done = RUNNER.invoke(app, arguments, env={"COLUMNS": "200"})

    assert (done.exit_code, done.stdout) == (2, "")
    assert meant in done.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder whose bin has `edgetune`, as an installation has it."""
    executable = tmp_path / "bin" / "edgetune"
    executable.parent.mkdir()
    executable.write_text(f"#!{sys.executable}\nfrom edgetune_cli.__main__ import main\nmain()\n")
    executable.chmod(0o755)
    return tmp_path


def shell(home: Path, *command: str, **variables: str) -> str:
    environment = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=home)
    return done.stdout


def test_bash_completes_commands_and_options(home: Path) -> None:
    script = shell(home, "edgetune", _EDGETUNE_COMPLETE="source_bash")
    (home / "completion.sh").write_text(script)
    complete = """source completion.sh
COMP_WORDS=(edgetune {words}); COMP_CWORD={last}; _edgetune_completion edgetune; echo "${{COMPREPLY[@]}}" """

    assert shell(home, "bash", "-c", complete.format(words="ver", last=1)).split() == ["versions", "verify"]
    assert "--filename" in shell(home, "bash", "-c", complete.format(words="plan --file", last=2)).split()
    assert shell(home, "bash", "-c", complete.format(words="list -o j", last=3)).split() == ["json"]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_zsh_and_fish_get_a_script_that_asks_the_command(home: Path, name: str) -> None:
    script = shell(home, "edgetune", _EDGETUNE_COMPLETE=f"source_{name}")
    variables = {"_TYPER_COMPLETE_ARGS": "edgetune ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answer = shell(home, "edgetune", _EDGETUNE_COMPLETE=f"complete_{name}", **variables)

    assert f"_EDGETUNE_COMPLETE=complete_{name}" in script
    assert "versions" in answer
    assert "verify" in answer
    assert "validate" not in answer


def test_names_of_objects_are_completed(home: Path) -> None:
    for name in ("pumps", "valves"):
        path = home / ".edgetune" / "objects" / "default" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"metadata: {{name: {name}, namespace: default}}\n")
    variables = {"_TYPER_COMPLETE_ARGS": "edgetune describe pu", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}

    assert shell(home, "edgetune", _EDGETUNE_COMPLETE="complete_fish", **variables).split() == ["pumps"]


def test_quiet_leaves_out_notes_and_keeps_results_and_problems(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    loud, quiet = (RUNNER.invoke(app, ["digest", str(tmp_path / "train.jsonl"), *options]) for options in ((), ("-q",)))
    problem = RUNNER.invoke(app, ["digest", str(tmp_path / "missing.jsonl"), "-q"])

    assert quiet.stdout == loud.stdout
    assert "data set of 1 file" in loud.stderr
    assert quiet.stderr == ""
    assert "does not exist" in problem.stderr
    assert problem.stdout == ""


@pytest.mark.parametrize("name", ["run", "delete", "validate", "plan", "estimate", "report"])
@pytest.mark.parametrize("arguments", [("home.yaml",), ("home.yaml", "-q")])
def test_a_file_without_its_option_is_said_to_belong_after_it(name: str, arguments: tuple[str, ...]) -> None:
    done = RUNNER.invoke(app, [name, *arguments], env={"COLUMNS": "200"})

    assert done.exit_code == 2
    assert "Missing option '--filename' / '-f'. Did you mean -f home.yaml?" in done.stderr


def test_a_missing_option_without_a_file_gets_no_suggestion() -> None:
    done = RUNNER.invoke(app, ["run", "--profiles", "profiles.yaml"], env={"COLUMNS": "200"})

    assert "Missing option '--filename' / '-f'." in done.stderr
    assert "mean" not in done.stderr


def ended(home: Path, command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A line of a shell in which `edgetune` is installed."""
    environment = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), **variables}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=120, cwd=home
    )


def test_a_full_disk_behind_standard_output_is_one_line_and_no_traceback(home: Path) -> None:
    done = ended(home, "edgetune list -o json > /dev/full")

    assert done.returncode == 2
    assert done.stderr == "edgetune: standard output: No space left on device\n"


def test_a_pipe_that_is_closed_early_is_silent(home: Path) -> None:
    (home / "many.yaml").write_text("kind: LoraFineTune\n---\n" * 3000)

    done = ended(home, "edgetune validate -f many.yaml | head -1")

    assert done.stdout.startswith("many.yaml:1: ")
    assert done.stderr == ""


def test_a_terminal_that_cannot_show_a_character_gets_another_one(home: Path) -> None:
    done = ended(home, "edgetune versions -h", PYTHONIOENCODING="ascii")

    assert done.returncode == 0
    assert "?/models/NAME in a store" in done.stdout


@pytest.mark.parametrize(
    "written",
    [
        "\x00",
        "foo: [",
        "[1, 2]",
        "",
        "metadata: 7",
        "metadata: {name: pumps}",
        "metadata: {name: 7, namespace: default}",
        "metadata: {name: pumps, namespace: default}\nspec: 3",
        "metadata: {name: pumps, namespace: default}\nstatus: [1]",
    ],
)
@pytest.mark.parametrize("command", [["list"], ["describe", "pumps"], ["logs", "pumps"], ["prune", "--dry-run"]])
def test_a_file_that_no_run_has_written_is_no_object_of_the_work_folder(
    tmp_path: Path, command: list[str], written: str
) -> None:
    path = tmp_path / "objects" / "default" / "pumps.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(written)

    done = RUNNER.invoke(app, [*command, "--workdir", str(tmp_path)], catch_exceptions=False)

    assert done.exit_code == (0 if command[0] == "prune" else 2)
