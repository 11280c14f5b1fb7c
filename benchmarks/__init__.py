"""What is timed, and the harness. Results that were measured on a stated machine lie in `results/`."""
