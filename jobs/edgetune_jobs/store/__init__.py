"""Where artifacts and sources are: S3, local folders, the Hugging Face hub. Imports errors."""
