"""A whole Kubernetes with one real node, for tests and for playing: `python -m cluster` with tests/ on the path."""
