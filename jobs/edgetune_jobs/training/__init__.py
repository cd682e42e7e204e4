"""Training of the adapter: recipe for the libraries, loop, checkpoints to resume from, memory estimate.

Imports stage, models, data, store and errors.
"""
