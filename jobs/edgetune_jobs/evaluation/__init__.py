"""Evaluation: answers, scores, gates."""
