"""Speed and memory of models on a CPU, for the edge budget. Imports what evaluation may import."""
