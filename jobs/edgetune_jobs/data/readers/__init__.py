"""Readers of rows, one module per file format. Imports what data may import."""
