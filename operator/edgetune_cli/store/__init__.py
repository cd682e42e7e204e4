"""Commands on models in a store. Only this room may import the jobs' code, when a command runs."""
