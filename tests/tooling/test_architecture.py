"""Rules of the layout that import-linter cannot check."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from support.apiserver import REPOSITORY

PACKAGES = {
    "edgetune_contract": REPOSITORY / "jobs" / "edgetune_contract",
    "edgetune_jobs": REPOSITORY / "jobs" / "edgetune_jobs",
    "edgetune_operator": REPOSITORY / "operator" / "edgetune_operator",
    "edgetune_cli": REPOSITORY / "operator" / "edgetune_cli",
}
HEAVY = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")
LIGHT = (
    "edgetune_jobs.__main__",
    "edgetune_jobs.runtime.process",
    "edgetune_cli.__main__",
    "edgetune_operator.reconcile",
)
STAGES = tuple(f"edgetune_jobs.stages.{path.stem}" for path in (PACKAGES["edgetune_jobs"] / "stages").glob("[a-z]*.py"))
PURE = ("api", "decisions")
# Prints each module with the heavy libraries that its import has added.
IMPORTS = """
import importlib, sys
for module in {modules!r}:
    before = set(sys.modules)
    importlib.import_module(module)
    print(module, *sorted((set(sys.modules) - before) & {heavy!r}))
"""


def calls(path: Path) -> Iterator[str]:
    """Names of the methods and attributes that a file calls."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports, at any level of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def run_python(code: str) -> str:
    """Output of a fresh interpreter in the repository's root."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.mark.parametrize("folder", ["operator", "jobs"])
def test_the_folders_of_the_packages_are_not_packages(folder: str) -> None:
    assert not (REPOSITORY / folder / "__init__.py").exists()


def test_the_standard_librarys_operator_is_not_shadowed() -> None:
    assert Path(run_python("import operator; print(operator.__file__)")).parent == Path(subprocess.__file__).parent


def test_the_contract_imports_pydantic_and_the_standard_library_only() -> None:
    allowed = {"edgetune_contract", "pydantic", "pydantic_core"} | set(sys.stdlib_module_names)

    found = {name for path in PACKAGES["edgetune_contract"].glob("*.py") for name in imported(path)}

    assert found - allowed == set()


@pytest.fixture(scope="module")
def loaded_by() -> Mapping[str, Sequence[str]]:
    """The heavy libraries that LIGHT and STAGES import, each named with the first module that imports it."""
    answer = run_python(IMPORTS.format(modules=[*LIGHT, *STAGES], heavy=set(HEAVY)))
    return {module: libraries for module, *libraries in map(str.split, answer.splitlines())}


@pytest.mark.parametrize("module", [*LIGHT, *STAGES])
def test_a_module_is_imported_without_the_heavy_libraries(loaded_by: Mapping[str, Sequence[str]], module: str) -> None:
    assert loaded_by[module] == []


def test_every_stage_has_its_module() -> None:
    assert {name.rpartition(".")[2] for name in STAGES} == {stage.value for stage in Stage}


@pytest.mark.parametrize("room", PURE)
def test_decisions_read_no_clock(room: str) -> None:
    for path in (PACKAGES["edgetune_operator"] / room).glob("*.py"):
        assert set(calls(path)) & {"now", "utcnow", "today", "monotonic"} == set(), path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_reads_pickles_or_runs_code_of_a_model(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        assert not set(imported(path)) & {"pickle", "cloudpickle", "dill", "joblib"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_installed_from_the_folders_of_the_layout(package: str) -> None:
    spec = importlib.util.find_spec(package)

    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == PACKAGES[package]
