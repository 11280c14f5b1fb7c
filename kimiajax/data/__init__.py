"""Scans, patches and pixels. Nothing here knows a model, and nothing here imports jax."""
