"""Forecast of the next passes, made by running `plan` on values. May import what decisions may."""
