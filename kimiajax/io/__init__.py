"""Files, locks, caches, checkpoints and records."""
