"""Generated files: CRD, field reference, chart files."""
