"""Forecast of the next passes, made by running `plan` on values. Imports what decisions may import."""
