"""What a sweep found, as text and as one file with its curves."""

import json
from pathlib import Path
from typing import Any

from kimiajax import __version__
from kimiajax.errors import UserError
from kimiajax.evaluation.claims import LEVEL
from kimiajax.evaluation.statistics import DRAWS
from kimiajax.io.files import csv_text, write_text
from kimiajax.report.console import as_text, new_table
from kimiajax.report.html import flat, page
from kimiajax.runs.reader import Presets, rerun
from kimiajax.runs.warnings import SCORES
from kimiajax.text import cautions, percent


def render_sweep(results: dict[str, Any]) -> str:
    """A table an axis, of eta_total at each value; a star is at what differs from the centre by more than chance."""
    parts = [*results["warnings"], results["headline"]]
    for axis in results["axes"]:
        values = values_of(axis)
        table = new_table()
        table.add_column("approach", no_wrap=True)
        for value in values:
            table.add_column(str(value), justify="right", no_wrap=True)
        for curve in axis["curves"]:
            points = {point["value"]: point for point in curve["points"]}
            table.add_row(curve["approach"], *(_cell(points.get(value), curve) for value in values))
        parts += [f"\neta_total over {axis['title']}:", table]
    parts.append(
        f"Per cent, means over seeds {', '.join(map(str, results['seeds']))}; in brackets the settings of the centre. "
        f"A star: other than at the centre, p at most {100 * LEVEL:.0f} % after Holm's correction for the axis."
    )
    return as_text(*parts, *([] if results["complete"] else ["NOT COMPLETE: the same command goes on."]))


def values_of(axis: dict[str, Any]) -> list[Any]:
    """All values of an axis, in the order of its curves."""
    values = [point["value"] for curve in axis["curves"] for point in curve["points"]]
    numbers = sorted({value for value in values if isinstance(value, int)})
    return [*numbers, *dict.fromkeys(value for value in values if not isinstance(value, int))]


def failed(results: dict[str, Any]) -> bool:
    """Whether a row of the table has no accuracy somewhere."""
    return any(
        row["failure"] for place in results.get("places", []) for row in place["rows"] if row["family"] == "table"
    )


def differs(point: dict[str, Any], score: str = "eta_total") -> bool:
    """Whether a point is other than the centre by more than chance."""
    pair = point["against_centre"]
    return pair is not None and pair["adjusted"][score] <= LEVEL


def _cell(point: dict[str, Any] | None, curve: dict[str, Any]) -> str:
    if point is None or point["eta_total"] is None:
        return "" if point is None else "-"
    figure = percent(point["eta_total"]) + ("*" if differs(point) else "")
    return f"({figure})" if point["value"] == curve["centre"] else figure


def sweep_csv(results: dict[str, Any]) -> str:
    """A line a point of a curve, scores and intervals as fractions; what does not exist is empty."""
    bounds = [f"{score}{end}" for score in SCORES for end in ("", "_low", "_high", "_p")]
    lines = []
    for axis in results["axes"]:
        for curve in axis["curves"]:
            for point in curve["points"]:
                figures: list[Any] = []
                for score in SCORES:
                    low, high = (point["intervals"] or {}).get(score, (None, None))
                    pair = point["against_centre"]
                    figures += [point[score], low, high, pair and pair["adjusted"][score]]
                about = [axis["name"], curve["row"], point["value"], curve["centre"], point["train"]]
                lines.append([*about, len(results["seeds"]), *figures, point["run"], " ".join(results["warnings"])])
    head = ["axis", "row", "value", "centre", "train_per_scan", "seeds", *bounds, "run", "warnings"]
    return csv_text(head, lines).rstrip()


def write_sweep_report(
    folder: str | Path, results: dict[str, Any], path: Path | None = None, *, presets: Presets | None = None
) -> Path:
    """Writes the report: `report.html` in the sweep's folder, unless another path is given.

    Raises:
        UserError: matplotlib or jinja2 is not installed, or the path is a folder.
    """
    path = path or Path(folder) / "report.html"
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name the file, {path / 'report.html'} say")
    write_text(path, page("sweep.html.j2", lambda figures: context(Path(folder), results, figures, presets or {})))
    return path


def context(folder: Path, results: dict[str, Any], figures: Any, presets: Presets) -> dict[str, Any]:
    """What the template takes."""
    word = results.get("word", "scan")  # which earlier versions did not say
    intervals = [
        (low, high)
        for axis in results["axes"]
        for curve in axis["curves"]
        for point in curve["points"]
        for low, high in (point["intervals"] or {}).values()
    ]
    return {
        **results,
        "title": f"{results['preset']}: {folder.resolve().name}",
        "version": __version__,
        "scores": SCORES,
        "drawn": [
            (
                axis,
                values_of(axis),
                [
                    figures.sweep_figure(axis, values_of(axis), score, results["guess"])
                    for score in ("eta_total", "eta_p")
                ],
            )
            for axis in results["axes"]
        ],
        "cautions": cautions(results["tested"], intervals, word, results.get("labels")),
        "word": word,
        "rerun": rerun(results, presets, "kimiajax sweep"),
        "machine": flat(results["environment"]),
        "settings": [(name, json.dumps(value)) for name, value in results["config"].items()],
        "level": LEVEL,
        "draws": DRAWS,
    }
