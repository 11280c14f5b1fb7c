"""Weights by their name or path."""
