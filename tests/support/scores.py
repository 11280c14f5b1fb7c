"""Scores by plain loops."""

import math


def counted_by_hand(labels, predicted, num_scans):
    """eta_p, eta_w, eta_total, eta_w_precision by plain loops."""
    recalls, precisions = [], []
    for scan in range(num_scans):
        tested = [p for t, p in zip(labels, predicted) if t == scan]
        guessed = [t for t, p in zip(labels, predicted) if p == scan]
        if tested:
            recalls.append(sum(p == scan for p in tested) / len(tested))
        if tested or guessed:
            precisions.append(sum(t == scan for t in guessed) / len(guessed) if guessed else math.nan)
    eta_p = sum(t == p for t, p in zip(labels, predicted)) / len(labels)
    eta_w = sum(recalls) / len(recalls)
    return eta_p, eta_w, eta_p * eta_w, sum(precisions) / len(precisions)
