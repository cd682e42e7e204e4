"""Quantized models: which weights a method or format quantizes, and how they are loaded."""
