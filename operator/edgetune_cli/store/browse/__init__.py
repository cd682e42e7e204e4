"""Commands that look through objects and their store: list, describe, logs, open, prune."""
