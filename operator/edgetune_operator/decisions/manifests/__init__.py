"""Manifests of the stages' Jobs, and the memory, disk and GPUs that they request."""
