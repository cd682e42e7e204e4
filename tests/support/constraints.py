"""constraints.txt: the version of each library that images and .venv get."""

from packaging.requirements import Requirement

from cluster.folders import REPOSITORY

CONSTRAINTS = REPOSITORY / "constraints.txt"


def constraint_lines() -> list[str]:
    """Lines of the file that are no comments."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def pins() -> dict[str, str]:
    """Versions by canonical name of the library."""
    constraints = map(Requirement, constraint_lines())
    return {constraint.name: str(constraint.specifier).removeprefix("==") for constraint in constraints}
