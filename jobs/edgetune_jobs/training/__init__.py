"""Trains the adapter: configuration of the libraries, training loop, checkpoints, memory estimate.

Imports stage, models, data, store and errors.
"""
