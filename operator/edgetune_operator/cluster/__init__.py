"""Kubernetes: the client, the watch cache, lists, a training's progress. May import reconcile and rooms under it."""
