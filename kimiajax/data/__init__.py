"""Scans, patches and pixels. Nothing here knows a model, and nothing but Grain, in `grain_loader.py`, imports jax."""
