"""The store and inputs in S3."""
