"""Generators of the CRD, the field reference and the chart's files. Imports api and the contract."""
