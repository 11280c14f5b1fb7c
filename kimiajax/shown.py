"""Numbers as a reader takes them, and what keeps a reader from taking them for more."""

from collections.abc import Iterable, Sequence

FEW = 15  # test patches of a scan, under which a bootstrap within scans may give intervals that are too short
NO_WIDTH = (
    "An interval without width: of each scan all patches fare alike, so that a bootstrap draws the same again. It says "
    "nothing of how sure the figure is."
)


def percent(share: float | None) -> str:
    """A share in per cent, two decimals; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.2f}"


def points(difference: float) -> str:
    """A difference of shares in points, two decimals and its sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def p_value(p: float) -> str:
    """A p-value; the smallest of a permutation is 1 / 10,001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def over_seeds(seeds: int) -> str:
    """What to add to a count of patches that counts each once a seed."""
    return f" over {seeds} seeds" if seeds > 1 else ""


def few_patches(tested: Sequence[int]) -> str | None:
    """A sentence where scans have few test patches, from how many each has."""
    few = [scan for scan, count in enumerate(tested) if 0 < count < FEW]
    if not few:
        return None
    listed = "each scan" if len(few) == len(tested) else f"scan {', '.join(map(str, few))}"
    return f"Fewer than {FEW} test patches are of {listed}: intervals of eta_w and eta_total may be too short."


def cautions(tested: Sequence[int], intervals: Iterable[tuple[float, float]]) -> list[str]:
    """What must be said of some intervals."""
    without = NO_WIDTH if any(low == high for low, high in intervals) else None
    return [sentence for sentence in (few_patches(tested), without) if sentence]
