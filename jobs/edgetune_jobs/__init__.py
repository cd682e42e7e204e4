"""The stages that run in containers, and what carries them: runtime, store, checkpoints, data, models."""
