"""What is told about data on a screen or in a pipe: counts of patches by rule, and audits."""

import math
from collections.abc import Sequence

from kimiajax import paper
from kimiajax.data.audit.audit import NOT_TOLD, TRUSTED, Audit
from kimiajax.data.audit.checks import FAILED
from kimiajax.data.audit.rule_counts import BACKGROUND, HOMOGENEITY, Count
from kimiajax.data.patches import GRIDS
from kimiajax.report.console import as_text, new_table
from kimiajax.runs.classes import is_kimia


def render_counts(counts: list[Count], names: Sequence[str], test: Sequence[int] | None, background: int) -> str:
    """Counts by scan for one background level, totals for the others, and of Kimia Path24 the published totals.

    Args:
        counts: of `count_patches`.
        names: of the scans.
        test: test patches of each scan, or None where none are held out yet.
        background: the level of the first table.
    """
    by_setting = {(count.grid, count.background, count.homogeneity): count for count in counts}
    by_scan = new_table(show_footer=True)
    by_scan.add_column("scan", footer="all", no_wrap=True)
    by_scan.add_column("test", footer=_number(sum(test)) if test else "", justify="right")
    for grid in GRIDS:
        for homogeneity in HOMOGENEITY:
            total = by_setting[grid, background, homogeneity].total
            by_scan.add_column(f"{grid}\n{_share(homogeneity)}", footer=_number(total), justify="right", no_wrap=True)
    for scan, name in enumerate(names):
        chosen = (by_setting[grid, background, h].per_scan[scan] for grid in GRIDS for h in HOMOGENEITY)
        by_scan.add_row(name, str(test[scan]) if test else "", *map(_number, chosen))

    totals = new_table()
    totals.add_column("gray", no_wrap=True)
    for grid in GRIDS:
        for homogeneity in HOMOGENEITY:
            totals.add_column(f"{grid}\n{_share(homogeneity)}", justify="right", no_wrap=True)
    for level in BACKGROUND:
        chosen = (by_setting[grid, level, h].total for grid in GRIDS for h in HOMOGENEITY)
        totals.add_row(f"{level}+", *map(_number, chosen))

    kimia = is_kimia({"names": names, "test_per_scan": test, "synthetic": False})
    return as_text(
        f"Training patches by scan. Background is gray {background} and above; a patch is left out where that is its "
        "share or more of it (none: never). The full grid holds every whole patch, the data set's README loop is one "
        "row and one column short. Patches over whitened places are left out throughout.",
        by_scan,
        "All scans, by the gray value from which a pixel counts as background:",
        totals,
        *(_beside(published, counts) for published in paper.TRAINING_PATCHES_PUBLISHED.items() if kimia),
        *([] if kimia else [f"These are {len(names)} scans, other than Kimia Path24's: their counts are their own."]),
    )


def _beside(published: tuple[str, int], counts: list[Count]) -> str:
    """A published total, and the rules here whose total is nearest to it."""
    who, total = published
    told = f"published of Kimia Path24: {total:,} ({who})"
    nearest = min((c for c in counts if c.homogeneity <= 1), key=lambda count: abs(count.total - total))
    flags = f"--grid {nearest.grid} --background {nearest.background} --homogeneity {_share(nearest.homogeneity)}"
    return f"{told}; nearest here {nearest.total:,}, with {flags}"


def render_audit(audit: Audit) -> str:
    """The checks of an audit, and what they come to."""
    table = new_table()
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for check in audit.checks:
        table.add_row(check.name, check.verdict, check.detail)
    marked = " Results computed from these data will say so." if audit.identity else ""
    verdicts = {
        FAILED: f"FAILED: {', '.join(audit.failed)}.{marked}",
        NOT_TOLD: f"NOT TOLD: no check failed, and these could not tell: {', '.join(audit.untold)}.{marked}",
        TRUSTED: "PASSED: no check failed.",
    }
    left_out = f" Left out: {audit.left_out}." if audit.left_out else ""
    return as_text(audit.path, table, verdicts[audit.verdict] + left_out)


def _share(homogeneity: float) -> str:
    return f"{homogeneity:g}" if math.isfinite(homogeneity) else "none"


def _number(count: int) -> str:
    return f"{count:,}"
