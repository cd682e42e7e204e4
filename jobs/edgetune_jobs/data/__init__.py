"""Data sets: rows, splits, prompts and tokens, and what is wrong with them. Imports store and errors."""
