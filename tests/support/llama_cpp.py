"""llama.cpp for tests: built once in its own environment in the cache, and run in its own processes.

PYTHONPATH=tests python -m support.llama_cpp      builds it if needed; `make test` runs this first
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.folders import cache_folder, locked
from support.constraints import CONSTRAINTS, pins

_VERSION = pins()["llama-cpp-python"]
_COMPLETE, _FAILED = "complete", "failed"
_BUILD_LIMIT_SECONDS = 1800
_RUN_LIMIT_SECONDS = 120
# Reads {"model", "lora", "texts", "prompts", "chats", "maxNewTokens", "context"}; writes {"tokens", "logits",
# "answers", "chats", "template"}. The tokens of a chat are those that llama.cpp's handler of chats evaluates.
_SCRIPT = """
import json, sys
from llama_cpp import Llama
class Recorded(Llama):
    def create_completion(self, prompt, **options):
        self.prompt = prompt
        return super().create_completion(prompt, **options)
request = json.load(sys.stdin)
model = Recorded(
    request["model"],
    lora_path=request["lora"],
    n_ctx=request["context"],
    n_threads=1,
    logits_all=True,
    verbose=False,
)
tokens = [model.tokenize(text.encode(), add_bos=True, special=True) for text in request["texts"]]
answers, logits = [], []
for ids in request["prompts"]:
    model.reset()
    model.eval(ids)
    logits.append(model.scores[: len(ids)].tolist())
    model.reset()
    answer = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        if token == model.token_eos() or len(answer) == request["maxNewTokens"]:
            break
        answer.append(token)
    answers.append(answer)
chats = []
for messages in request["chats"]:
    options = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": request["maxNewTokens"]}
    said = model.create_chat_completion(messages, **options)
    chats.append({"tokens": list(model.prompt), "answer": said["choices"][0]["message"]["content"]})
template = model.metadata.get("tokenizer.chat_template")
json.dump({"tokens": tokens, "logits": logits, "answers": answers, "chats": chats, "template": template}, sys.stdout)
"""


def run_llama_cpp(
    model: Path,
    *,
    lora: Path | None = None,
    texts: Sequence[str] = (),
    prompts: Sequence[Sequence[int]] = (),
    chats: Sequence[Sequence[Mapping[str, str]]] = (),
    max_new_tokens: int = 24,
    context: int = 512,
) -> dict[str, Any]:
    """Run a GGUF file in llama.cpp.

    Args:
        model: the file.
        lora: the file of an adapter for it.
        texts: texts to tokenize like prompts, including special tokens; their ids are under `tokens`.
        prompts: token ids; their greedy continuations up to EOS are under `answers`, and their logits
            [tokens, vocabulary] under `logits`.
        chats: conversations; under `chats` are the `tokens` of the prompt of each and its greedy `answer`.
        max_new_tokens: maximum length of an answer in tokens.
        context: of the model in tokens.

    Raises:
        AssertionError: llama.cpp failed; with its stderr.
    """
    request = {
        "model": str(model),
        "lora": None if lora is None else str(lora),
        "texts": texts,
        "prompts": prompts,
        "chats": chats,
        "maxNewTokens": max_new_tokens,
        "context": context,
    }
    done = subprocess.run(
        [str(_python()), "-c", _SCRIPT],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=_RUN_LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def install_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make llama.cpp importable in the processes that stages start, and let stages know."""
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    monkeypatch.setattr("edgetune_jobs.models.quantization.llama_cpp.is_installed", lambda: True)


def packages_of_llama_cpp() -> Path:
    """The site-packages folder with llama_cpp, for interpreters of this version."""
    return next((_python().parent.parent / "lib").glob("python*/site-packages"))


def build() -> None:
    """Build llama.cpp if needed. If the build fails, the reason is stored for the tests that are then skipped."""
    folder = _folder()
    with locked(folder.parent, folder.name):
        if (folder / _COMPLETE).is_file():
            return
        print(f"building llama.cpp into {folder}; this takes some minutes, once", file=sys.stderr, flush=True)
        failed = _build(folder)
        folder.mkdir(exist_ok=True)
        if failed is None:
            (folder / _COMPLETE).touch()
        else:
            print(f"cannot build llama.cpp: {failed}; its tests are skipped", file=sys.stderr, flush=True)
            (folder / _FAILED).write_text(failed)


def _python() -> Path:
    """The interpreter with llama.cpp; without it, the test is skipped with the reason."""
    folder = _folder()
    if not (folder / _COMPLETE).is_file():
        failed = folder / _FAILED
        reason = failed.read_text() if failed.is_file() else "not built yet; `make test` builds it"
        pytest.skip(f"llama-cpp-python {_VERSION} is not available: {reason}")
    return folder / "bin" / "python"


def _folder() -> Path:
    return cache_folder() / f"llama-cpp-python-{_VERSION}"


def _build(folder: Path) -> str | None:
    """Build llama.cpp; the last line of the error if it fails."""
    python = folder / "bin" / "python"
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return "no C compiler"
    # Portable code, because the cache may be copied to another machine.
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
