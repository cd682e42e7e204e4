"""Kubernetes: the client, the watch cache, lists, a training's progress. Imports reconcile and the rooms under it."""
