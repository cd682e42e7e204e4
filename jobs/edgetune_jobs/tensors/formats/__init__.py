"""Edge formats: bitsandbytes INT8, compressed-tensors W8A8 and GGUF. Imports what tensors may import."""
