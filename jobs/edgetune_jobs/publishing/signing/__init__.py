"""Signatures of versions: OpenSSF Model Signing for files, an in-toto statement for the version and its provenance."""
