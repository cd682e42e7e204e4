"""GGUF, the format of llama.cpp: the encoder, the layout, the tokenizer, and the quantizer of llama.cpp."""
