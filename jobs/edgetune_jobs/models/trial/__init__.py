"""Tries the files of a model that others wrote, before anything depends on them, within limits of time and memory."""
