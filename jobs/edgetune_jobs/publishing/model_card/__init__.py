"""The model card: README.md of an edge model, for people and for model hubs."""
