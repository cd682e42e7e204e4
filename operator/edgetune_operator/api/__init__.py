"""The object's models, names, reasons, profiles and the check of a spec. May import the contract only."""
