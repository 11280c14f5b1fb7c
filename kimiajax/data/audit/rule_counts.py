"""How many training patches each reading of the paper's rule leaves, since three counts of them were published."""

import itertools
import math
from dataclasses import dataclass

from kimiajax.data.patches import GRIDS, Rules, candidates_of
from kimiajax.data.survey import Survey

HOMOGENEITY = (0.8, 0.9, 0.95, 0.99, 1.0, math.inf)  # the last leaves none out
BACKGROUND = (180, 190, 200, 210, 220, 230, 240, 250)


@dataclass(frozen=True)
class Count:
    """Training patches of each scan under one reading of the rule."""

    grid: str
    background: int
    homogeneity: float
    per_scan: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.per_scan)


def count_patches(surveys: list[Survey]) -> list[Count]:
    """Counts for every grid, background level and homogeneity; whitened places are left out throughout."""
    counts = []
    for grid, background, homogeneity in itertools.product(GRIDS, BACKGROUND, HOMOGENEITY):
        rules = Rules(grid=grid, background=background, homogeneity=homogeneity)
        per_scan = tuple(len(candidates_of(survey, scan, rules).patches) for scan, survey in enumerate(surveys))
        counts.append(Count(grid, background, homogeneity, per_scan))
    return counts
