"""Networks: parameters in, `(output, taps)` out. Nothing here knows the data or the training."""
