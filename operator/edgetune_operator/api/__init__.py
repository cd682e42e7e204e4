"""The object's models, names, reasons, profiles and the check of a spec. Imports the contract only."""
