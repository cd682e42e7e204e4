"""Export of one edge model of a version: to a folder, to a tar archive, or to an OCI registry."""
