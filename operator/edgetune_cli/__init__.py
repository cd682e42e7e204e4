"""The command line: runs the operator's decisions on this machine and shows objects to users."""
