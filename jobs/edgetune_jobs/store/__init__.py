"""Storage of artifacts and sources: S3, local folders, the Hugging Face hub. Imports errors."""
