"""Python imports this module at its start if its folder is in PYTHONPATH: then llama.cpp cannot be imported."""

import sys

sys.modules["llama_cpp"] = None  # type: ignore[assignment]
