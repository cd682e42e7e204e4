"""What an object may read, and how the S3 client reaches it."""
