"""LoraFineTunes from YAML files that users write."""
