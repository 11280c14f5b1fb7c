"""Workloads of the races: each module has its cases, and this project's way to do the work."""
