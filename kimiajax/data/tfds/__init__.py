"""Kimia Path24 as a data set of TFDS, and any prepared set as a source of patches."""
