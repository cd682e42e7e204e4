"""What a model is worth: answers, losses, scores, and the gates on them.

Imports stage, models, data, store and errors.
"""
