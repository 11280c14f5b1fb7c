"""Scans, patches and pixels. Nothing here knows a model, and nothing imports jax, but that Grain does in `feed.py`."""
