"""Commands on models in a store. Only this package may import the jobs' code, and only while a command runs."""
