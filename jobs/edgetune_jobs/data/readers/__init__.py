"""Readers of rows, one module a file format."""
