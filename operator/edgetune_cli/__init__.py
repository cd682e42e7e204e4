"""The command line: runs the operator's decisions on this machine and shows objects to users."""

import sys

if sys.platform == "win32":
    raise SystemExit("edgetune runs on Linux and macOS; on Windows, install and run it in WSL 2")
