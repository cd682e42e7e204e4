"""Telling that a GPU's memory did not suffice from what torch and the libraries below it raise."""

# Of other classes than torch.OutOfMemoryError: raised by CUDA itself, and by its libraries for memory of their own.
_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory did not suffice.

    By names and words, so that light stages need not import torch.
    """
    is_torchs_own = any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).mro()
    )
    return is_torchs_own or (isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS))
