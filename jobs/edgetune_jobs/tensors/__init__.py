"""Merges and quantizes tensor by tensor in bounded memory: rows are read, merged, encoded and written.

Imports stage, models, data, store and errors.
"""
