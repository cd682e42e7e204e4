"""Edge formats: bitsandbytes INT8, compressed-tensors W8A8 and GGUF Q8_0. Imports what tensors may import."""
