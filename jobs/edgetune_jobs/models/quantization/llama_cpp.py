"""llama.cpp, as the package llama-cpp-python: it is in the jobs image, and optional for a local run."""

import importlib.metadata
import importlib.util

PACKAGE = "llama-cpp-python"
"""Name of the distribution."""

HOW_TO_INSTALL = (
    "`make llama-cpp` in a checkout of Edgetune, or `pip install llama-cpp-python`, compiles it in some minutes; a "
    "jobs image has it unless it was built with other EXTRAS"
)
"""Advice if it is missing."""


def is_installed() -> bool:
    """Whether llama.cpp can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


def version_name() -> str:
    """llama.cpp with the version of its package."""
    return f"llama.cpp ({PACKAGE} {importlib.metadata.version(PACKAGE)})"
