"""Commands on an object before it runs: written, checked, planned and estimated."""
