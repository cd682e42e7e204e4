"""Kubernetes: the client, the watch cache, lists, a training's progress."""
