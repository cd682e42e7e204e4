"""The operator's process: watches, work queue, workers, probes, settings."""
