"""llama.cpp for tests: built once into the cache, in an environment of its own, and run in processes of its own.

PYTHONPATH=tests python -m support.llama_cpp      builds it if it is not there; `make test` does so first
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.folders import cache_folder, locked
from support.constraints import CONSTRAINTS, pins

_VERSION = pins()["llama-cpp-python"]
_COMPLETE, _FAILED = "complete", "failed"
_BUILD_LIMIT_SECONDS = 1800
_RUN_LIMIT_SECONDS = 120
# Reads {"model", "texts", "prompts", "maxNewTokens"}, answers {"tokens", "logits", "answers", "template"}.
_SCRIPT = """
import json, sys
from llama_cpp import Llama
asked = json.load(sys.stdin)
model = Llama(asked["model"], n_ctx=512, n_threads=1, logits_all=True, verbose=False)
tokens = [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"]]
answers, logits = [], []
for ids in asked["prompts"]:
    model.reset()
    model.eval(ids)
    logits.append(model.scores[: len(ids)].tolist())
    model.reset()
    answer = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        if token == model.token_eos() or len(answer) == asked["maxNewTokens"]:
            break
        answer.append(token)
    answers.append(answer)
template = model.metadata.get("tokenizer.chat_template")
json.dump({"tokens": tokens, "logits": logits, "answers": answers, "template": template}, sys.stdout)
"""


def run_llama_cpp(
    model: Path, *, texts: Sequence[str] = (), prompts: Sequence[Sequence[int]] = (), max_new_tokens: int = 24
) -> dict[str, Any]:
    """What llama.cpp makes of a GGUF file.

    Args:
        model: the file.
        texts: texts to turn into tokens as a prompt is, special tokens in them included; ids under `tokens`.
        prompts: token ids; what follows most likely, up to the end token, under `answers`, and their own logits
            [tokens, vocabulary] under `logits`.
        max_new_tokens: longest answer in tokens.

    Raises:
        AssertionError: it does not load the file; with its own words.
    """
    asked = {"model": str(model), "texts": texts, "prompts": prompts, "maxNewTokens": max_new_tokens}
    done = subprocess.run(
        [str(_python()), "-c", _SCRIPT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=_RUN_LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def packages_of_llama_cpp() -> Path:
    """Folder from which an interpreter of this version can import llama_cpp."""
    return next((_python().parent.parent / "lib").glob("python*/site-packages"))


def build() -> None:
    """Build it if it is not there. Where that cannot be done, the reason is kept for the tests that are skipped."""
    folder = _folder()
    with locked(folder.parent, folder.name):
        if (folder / _COMPLETE).is_file():
            return
        print(f"building llama.cpp into {folder}: some minutes, once", file=sys.stderr, flush=True)
        failed = _build(folder)
        folder.mkdir(exist_ok=True)
        if failed is None:
            (folder / _COMPLETE).touch()
        else:
            print(f"llama.cpp cannot be built: {failed}; its tests are skipped", file=sys.stderr, flush=True)
            (folder / _FAILED).write_text(failed)


def _python() -> Path:
    """The interpreter that has llama.cpp. Skips the test, saying why, where there is none."""
    folder = _folder()
    if not (folder / _COMPLETE).is_file():
        failed = folder / _FAILED
        reason = failed.read_text() if failed.is_file() else "it was not built yet; `make test` does so"
        pytest.skip(f"there is no llama-cpp-python {_VERSION}: {reason}")
    return folder / "bin" / "python"


def _folder() -> Path:
    return cache_folder() / f"llama-cpp-python-{_VERSION}"


def _build(folder: Path) -> str | None:
    """Build it; the last line of what went wrong, if anything did."""
    python = folder / "bin" / "python"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return "there is no C compiler"
    # Portable code: the cache may be carried to another machine.
    options = {"CMAKE_ARGS": "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--constraint", str(CONSTRAINTS)]
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        ["nice", *install, "llama-cpp-python"],
    ):
        done = subprocess.run(
            command,
            env={**os.environ, **options},
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_LIMIT_SECONDS,
        )
        if done.returncode != 0:
            return next(reversed(done.stderr.strip().splitlines()), f"{command[0]} ended with {done.returncode}")
    return None


if __name__ == "__main__":
    build()
