"""`python -m edgetune_jobs.tensors.formats.gguf.quantizer_process SOURCE TARGET TYPE THREADS PARENT MATRIX`.

The process that quantizes one GGUF file by llama.cpp. Standard output gets a JSON object a line: {"done", "total"} in
tensors, or {"problem"}; standard error gets llama.cpp's log.
"""

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

from edgetune_jobs.models.libraries import end_with

# Rows that llama.cpp holds in memory at once.
_MOST_BYTES = 2**26
# ggml_log_level of an error.
_ERROR = 4
_TENSOR = re.compile(rb"\[ *(\d+)/ *(\d+)\] ")


class _Log:
    """What llama.cpp logs."""

    def __init__(self) -> None:
        self.problem = ""

    def __call__(self, level: int, text: bytes, _data: object) -> None:
        words = text.decode(errors="replace")
        sys.stderr.write(words)
        if level == _ERROR and words.strip():
            self.problem = " ".join(words.split())
        tensor = _TENSOR.match(text)
        if tensor:
            _say(done=int(tensor[1]), total=int(tensor[2]))


def main() -> None:
    """Quantize the file."""
    source, target, file_type, threads, parent, matrix = sys.argv[1:]
    end_with(int(parent))
    try:
        import llama_cpp
    except Exception as error:
        _say(problem=f"it does not start here: {error}")
        raise

    log = _Log()
    callback = llama_cpp.llama_log_callback(log)  # llama.cpp keeps no reference
    llama_cpp.llama_log_set(callback, None)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = int(threads)
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    parameters.max_buf_size = _MOST_BYTES
    importance = _importance(Path(matrix)) if matrix else None
    if importance is not None:
        parameters.imatrix = importance
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)) != 0:
        _say(problem=log.problem)
        sys.exit(1)


def _importance(file: Path) -> Any:
    """llama.cpp's array of a file's matrices, which ends with an entry without a name."""
    import llama_cpp
    from safetensors.numpy import load_file

    means = load_file(file)
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = (ctypes.c_float * values.size)(*values.tolist())
    return entries


def _say(**line: str | int) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
