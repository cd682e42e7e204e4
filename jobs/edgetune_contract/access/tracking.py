"""The form of a tracker's address."""

MLFLOW_URI = r"^https?://[A-Za-z0-9._\[\]:-]+(/[A-Za-z0-9._~/-]*)?$"
"""The address of an MLflow server: without user and password, which everybody who can read Jobs could read."""
