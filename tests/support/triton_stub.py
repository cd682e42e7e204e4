"""Compiles and loads Triton's CUDA driver stub, as the first kernel on a GPU does. Runs inside the image of the stages.

The machine needs no GPU: a library with the names of libcuda's functions replaces its driver, and none is called.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path


def main() -> None:
    """Compile the stub, as any user and without writing outside of HOME and TMPDIR."""
    from triton.backends import nvidia

    folder = Path(next(iter(nvidia.__path__)))
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", (folder / "driver.c").read_text(encoding="utf-8"))))
    cuda = Path(tempfile.mkdtemp())
    source = cuda / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names), encoding="utf-8")
    library = cuda / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    # The stub is linked to it by path, and finds it by name once it is loaded.
    os.environ["TRITON_LIBCUDA_PATH"] = str(cuda)
    import ctypes

    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from triton.backends.nvidia.driver import CudaUtils

    assert callable(CudaUtils().load_binary)
    print(f"compiled as user {os.getuid()}")


if __name__ == "__main__":
    main()
