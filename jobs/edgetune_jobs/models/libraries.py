"""How torch and the Hugging Face libraries are brought up in a stage: threads, no network, no chatter."""

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CHATTY_LOGGERS = ("bitsandbytes", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")


def prepare_torch() -> None:
    """Set the process up for torch. Call it before anything imports torch; calling it again is harmless.

    Threads follow OMP_NUM_THREADS, else the CPUs that this process may use. Without OMP_WAIT_POLICY=PASSIVE, OpenMP
    threads that wait keep spinning on cores that a container has to share, which makes training several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # bitsandbytes warns once a layer and forward pass; the others repeat what the stages report in their own words.
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))


def prepare_libraries() -> None:
    """Set the process up for torch and the Hugging Face libraries, which takes seconds; else as prepare_torch."""
    prepare_torch()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # importing datasets for it costs 80 MB
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # trl and peft still read the old name of what transformers calls activation checkpointing since 5.22.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Paging moves optimizer state between GPU and host memory: on a CPU there is nothing to page, and nothing is lost.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU", category=UserWarning)


def load_config(folder: Path) -> "PreTrainedConfig":
    """transformers' configuration of a model folder: without the network, and without code of the model's own."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def read_proc_bytes(file: Path, field: str) -> int | None:
    """A figure of a file such as /proc/meminfo, whose lines are `field:  123 kB`; None if it has no such field."""
    line = next((line for line in file.read_text().splitlines() if line.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut to the container's CPU limit; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):  # no cgroup v2 here: affinity is all there is to know
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, int(quota) // int(period)))
