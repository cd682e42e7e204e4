"""Memory of a training: what a step takes, which step fits a GPU, and what to do when it does not."""
