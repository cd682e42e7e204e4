"""`edgetune plan`: the stages that changed objects would run, what that takes, and the report for a pull request."""
