"""Results as files and as tables. Reads stored results only: no model, no jax."""
