"""Values that all sides read and write alike: quantities, times, and texts on terminals. Imports nothing of ours."""
