"""Audits of data: leaks, damage, counts."""
