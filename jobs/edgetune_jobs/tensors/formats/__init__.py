"""Formats of edge models besides bitsandbytes: what can be written in them, and how."""
