"""Data sets: rows, checks, splits, prompts and tokens."""
