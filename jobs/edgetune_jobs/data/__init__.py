"""Data sets: rows, their errors and warnings, splits, prompts and tokens. Imports store and errors."""
