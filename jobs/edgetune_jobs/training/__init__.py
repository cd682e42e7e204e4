"""Training: the recipe, the loop, checkpoints and the memory estimate."""
