"""Where artifacts and inputs lie: S3, a folder, the hub."""
