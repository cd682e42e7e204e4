"""Inspects, loads, merges and saves models and adapters as safetensors folders. Imports data, store and errors."""
