"""The operator's process: watches, work queue, workers, probes, settings. May import every other room, and Kopf."""
