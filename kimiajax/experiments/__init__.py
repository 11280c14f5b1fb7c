"""The comparison table, its rows, sweeps over their settings, and predictions by a finished row."""
