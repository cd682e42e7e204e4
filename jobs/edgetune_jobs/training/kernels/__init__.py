"""How a training computes: attention of joined examples, and kernels that pass through memory less often."""
