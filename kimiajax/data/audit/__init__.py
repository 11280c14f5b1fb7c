"""Whether data can be trusted."""
