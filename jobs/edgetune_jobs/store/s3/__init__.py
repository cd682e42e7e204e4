"""The store and sources in S3. Imports what store may import."""
