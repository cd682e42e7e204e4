"""An edge device's copy of a model: fetched, verified, and switched to at once."""
