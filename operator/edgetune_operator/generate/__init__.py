"""Generators of the CRD, the field reference and the chart's files. May import api and the contract."""
