"""Local runs without a cluster: objects in a folder, Jobs as child processes. May import the operator's decisions."""
