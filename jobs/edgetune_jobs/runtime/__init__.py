"""A stage's process: request in, inputs fetched, body called, outputs and manifest written, exit code out."""
