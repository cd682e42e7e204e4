"""Readers of rows, one module a file format. Imports what data may import."""
