"""Sets up torch and the Hugging Face libraries in a stage: threads, offline mode, log levels; and child processes."""

import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_PR_SET_PDEATHSIG = 1
_NOISY_LOGGERS = ("bitsandbytes", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")


def prepare_torch() -> None:
    """Set up the process for torch. It must be called before the first import of torch; it is idempotent.

    The number of threads is OMP_NUM_THREADS, by default the CPUs that this process may use. Without
    OMP_WAIT_POLICY=PASSIVE, waiting OpenMP threads spin, which makes training several times slower on shared cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Otherwise rows of different lengths fragment the GPU's memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # tqdm reads it when it is imported. Some bars, such as that of GGUF tensors, have no other setting.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # bitsandbytes warns for each layer and forward pass; the others repeat what the stages report.
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))


def prepare_libraries() -> None:
    """Set up the process for torch, as prepare_torch, and for the Hugging Face libraries; takes seconds."""
    prepare_torch()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # importing datasets to set it costs 80 MB
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # trl and peft use the name that transformers deprecated in 5.22.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Paged optimizers move state between GPU and host memory. On a CPU, this is not needed.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU", category=UserWarning)


def load_config(folder: Path) -> "PreTrainedConfig":
    """The transformers configuration of a model folder, loaded offline and without the model's own code.

    An implementation of attention or experts that the file names is not used: it can be code in a repository of the
    hub.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Both also reset the configurations of the model's parts.
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def read_proc_bytes(file: Path, field: str) -> int | None:
    """The value in bytes of a field in a file such as /proc/meminfo, with lines `field:  123 kB`; None if missing."""
    line = next((line for line in file.read_text().splitlines() if line.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, at most the container's CPU limit; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):  # no cgroup v2, so no limit is known
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, int(quota) // int(period)))


def end_with(parent: int) -> None:
    """End this process when its parent ends, because nobody would wait for the result."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process has ended")
