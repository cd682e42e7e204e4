"""The report of a version: one HTML page of what the stages of its run left in the store.

    version document, manifests, metrics.jsonl, report.json, answers.jsonl ► RunRecord ► charts, tables ► page

Imports evaluation, publishing, training, stage, models, data, store and errors.
"""
