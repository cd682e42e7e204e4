"""A whole Kubernetes with one real node, for tests and for trying out: `python -m cluster` with tests/ on the path."""
