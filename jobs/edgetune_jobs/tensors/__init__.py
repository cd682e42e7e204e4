"""Merge and quantize tensor by tensor in bounded memory: stored bytes become rows, rows go through encoders to files.

Imports stage, models, data, store and errors.
"""
