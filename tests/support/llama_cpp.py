"""llama.cpp for tests: built once in its own environment in the cache, and run in its own processes.

PYTHONPATH=tests python -m support.llama_cpp      builds it if needed; `make test` runs this first
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.folders import REPOSITORY
from support.cached_environment import CachedEnvironment
from support.constraints import CONSTRAINTS, pins

_VERSION = pins()["llama-cpp-python"]
# Portable code, because the cache may be copied to another machine.
_CMAKE = "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DLLAVA_BUILD=OFF"
_ENVIRONMENT = CachedEnvironment(
    f"llama-cpp-python-{_VERSION}",
    ("llama-cpp-python",),
    options=("--constraint", str(CONSTRAINTS)),
    variables={
        "CMAKE_ARGS": f"{_CMAKE} -DCMAKE_PROJECT_llama.cpp_INCLUDE={REPOSITORY / 'jobs/llama-cpp.cmake'}",
        "CMAKE_BUILD_PARALLEL_LEVEL": "2",
    },
    needs="g++",
)
_RUN_LIMIT_SECONDS = 120
_WITHOUT = Path(__file__).with_name("without_llama_cpp")
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
        [str(_ENVIRONMENT.python()), "-c", _SCRIPT],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": python_path_with_llama_cpp()},
        capture_output=True,
        text=True,
        check=False,
        timeout=_RUN_LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def hide() -> None:
    """Make llama.cpp impossible to import, here and in child processes, also if `make llama-cpp` has installed it: a
    test chooses whether it has it."""
    sys.modules["llama_cpp"] = None  # type: ignore[assignment]
    if str(_WITHOUT) not in _paths():
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_WITHOUT), *_paths()])


def python_path_with_llama_cpp() -> str:
    """PYTHONPATH for child processes that have llama.cpp."""
    return os.pathsep.join([str(packages_of_llama_cpp()), *(path for path in _paths() if path != str(_WITHOUT))])


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def install_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make llama.cpp importable in the processes that stages start, and let stages know."""
    monkeypatch.setenv("PYTHONPATH", python_path_with_llama_cpp())
    monkeypatch.setattr("edgetune_jobs.models.quantization.llama_cpp.is_installed", lambda: True)


def packages_of_llama_cpp() -> Path:
    """The site-packages folder with llama_cpp, for interpreters of this version."""
    return next((_ENVIRONMENT.python().parent.parent / "lib").glob("python*/site-packages"))


def build() -> None:
    """Build llama.cpp if needed, which takes some minutes."""
    _ENVIRONMENT.install()


if __name__ == "__main__":
    build()
