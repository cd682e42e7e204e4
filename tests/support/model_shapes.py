"""What prepare reports of four published models, with 2,000 rows of at most 512 tokens and an adapter of rank 16."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Llama:
    """A model of the Llama family in 16 bits."""

    layers: int
    hidden: int
    inner: int
    key_heads: int
    head: int
    vocabulary: int
    parameters: int
    training_bytes: int

    def metrics(self) -> dict[str, float]:
        keys = self.key_heads * self.head
        return {
            "baseBytes": 2 * self.parameters + 4_000_000,
            "baseParameters": self.parameters,
            "largestTensorBytes": 2 * self.vocabulary * self.hidden,
            "largestLinearBytes": 2 * self.inner * self.hidden,
            "cacheBytesPerToken": 4 * self.layers * keys,
            "vocabulary": self.vocabulary,
            "streamed": 1,
            "expectedTrainableParameters": 16 * self.layers * 2 * (3 * self.hidden + keys),
            "estimatedTrainingBytes": self.training_bytes,
            "trainTokens": 400_000,
            "tokensMax": 512,
        }


MODELS: Mapping[str, Mapping[str, float]] = {
    "SmolLM2-135M": _Llama(30, 576, 1536, 3, 64, 49_152, 134_515_008, 10**9).metrics(),
    "Llama-3.2-1B": _Llama(16, 2048, 8192, 8, 64, 128_256, 1_235_814_400, 3 * 10**9).metrics(),
    "Llama-3.1-8B": _Llama(32, 4096, 14_336, 8, 128, 128_256, 8_030_261_248, 9 * 10**9).metrics(),
    "Llama-3.1-70B": _Llama(80, 8192, 28_672, 8, 128, 128_256, 70_553_706_496, 50 * 10**9).metrics(),
}
"""Metrics of prepare by the model's name."""
