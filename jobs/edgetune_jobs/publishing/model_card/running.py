"""How to run an edge model: a few lines for each runtime that reads its format."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from edgetune_contract.spec import EdgeFormat
from edgetune_contract.version import EdgeModel
from edgetune_jobs.models.folder import CHAT_TEMPLATE_FILE
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE

_QUESTION = "…"


def ways_to_run(edge: EdgeModel, name: str) -> Mapping[str, tuple[str, str]]:
    """Runtimes with the language and the lines of each, to run in the folder with the model's files.

    Args:
        edge: the edge model.
        name: name of the model.
    """
    names = {entry.path for entry in edge.files}
    if ADAPTER_FILE in names:
        # The base's file, which other adapters share, has the base's chat template.
        template = f" --chat-template-file {CHAT_TEMPLATE_FILE}" if CHAT_TEMPLATE_FILE in names else ""
        server = _LLAMA_SERVER.format(file=f"{BASE_FILE} --lora {ADAPTER_FILE}{template}")
        return {"llama.cpp": ("sh", server), "Ollama": _ollama(name)}
    gguf = next((entry.path for entry in edge.files if PurePosixPath(entry.path).suffix == ".gguf"), None)
    if gguf is not None:
        return _of_gguf(gguf, name)
    if edge.artifact.name == EdgeFormat.COMPRESSED_TENSORS_W8A8.artifact:
        return {"vLLM": ("sh", _VLLM.format(name=name)), "transformers and compressed-tensors": ("python", _PIPELINE)}
    return {"transformers and bitsandbytes": ("python", _PIPELINE)}


def _of_gguf(file: str, name: str) -> Mapping[str, tuple[str, str]]:
    return {
        "llama.cpp": ("sh", _LLAMA_SERVER.format(file=file)),
        "Ollama": _ollama(name),
        "llama-cpp-python": ("python", _LLAMA_CPP_PYTHON.format(file=file)),
    }


def _ollama(name: str) -> tuple[str, str]:
    return "sh", f'ollama create {name} -f Modelfile\nollama run {name} "{_QUESTION}"\n'


_MESSAGES = f'[{{"role": "user", "content": "{_QUESTION}"}}]'
_PIPELINE = f"""\
from transformers import pipeline
ask = pipeline("text-generation", model=".", do_sample=False, max_new_tokens=256)
print(ask({_MESSAGES})[0]["generated_text"][-1]["content"])
"""
_VLLM = f"""\
vllm serve . --served-model-name {{name}}
curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{{{"model": "{{name}}", "temperature": 0, "messages": [{{{{"role": "user", "content": "{_QUESTION}"}}}}]}}}}'
"""
_LLAMA_SERVER = f"""\
llama-server --model {{file}} --temp 0
curl http://localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{{{"messages": [{{{{"role": "user", "content": "{_QUESTION}"}}}}]}}}}'
"""
_LLAMA_CPP_PYTHON = f"""\
from llama_cpp import Llama
model = Llama("{{file}}", n_ctx=0)
print(model.create_chat_completion({_MESSAGES.replace("{", "{{").replace("}", "}}")}, temperature=0))
"""
