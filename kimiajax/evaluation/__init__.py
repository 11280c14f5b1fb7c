"""Scores, their statistics, and comparisons of predictions."""
