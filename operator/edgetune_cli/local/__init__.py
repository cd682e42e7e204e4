"""Runs without a cluster: objects in a folder, Jobs as child processes. It may import the operator's decisions."""
