"""The operator's process: watches, work queue, workers, probes, settings. Imports every other room, and Kopf."""
