"""Speed and memory of models on a CPU, within the edge budget. Imports what evaluation may import."""
