"""Where base models and data come from: folders, S3, the hub, and the cache of base models. Imports the store."""
