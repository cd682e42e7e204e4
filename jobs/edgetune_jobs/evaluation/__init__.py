"""Evaluation of models: answers, losses, scores, and the gates on them.

Imports stage, models, data, store and errors.
"""
