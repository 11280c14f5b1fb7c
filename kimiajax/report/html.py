"""One file that shows what a run found, and how surely: `report.html`. It needs no network, no script and no model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax import __version__, paper
from kimiajax.data.manifest import left_out_of
from kimiajax.errors import UserError
from kimiajax.evaluation.analysis import HISTOGRAM, Analysis, beaten_by_histogram
from kimiajax.evaluation.claims import CLAIMS, FAILS, HOLDS, LEVEL, MARGIN
from kimiajax.io.files import new_file
from kimiajax.io.lineage import ancestry
from kimiajax.report import formats
from kimiajax.runs.pictures import is_picture
from kimiajax.runs.reader import Presets, StoredRun, rerun
from kimiajax.runs.warnings import SCORES, headline, warnings_of
from kimiajax.text import over_seeds, p_value, percent, points, visible

MARKS = {HOLDS: "yes", FAILS: "no"}  # a class of the verdict's colour
SERIES = {"features": "linear SVM"}  # and of retrieval, its distance
FORMS = {"mean": "mean over space", "flat": "all values"}
SHOWN_PAIRS = SCORES[::-1]  # eta_total first


def write_report(
    run: StoredRun, analysis: Analysis, path: Path | None = None, *, presets: Presets | None = None
) -> Path:
    """Writes the report, and beside it the analysis: `report.analysis.json`.

    Args:
        run: as `read_run` reads it.
        analysis: of it.
        path: by default `report.html` in the run's folder.
        presets: the settings of each preset, by name, so that the command at the end holds only what departs from
            them.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    path = path or run.folder / "report.html"
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name the file, {path / 'report.html'} say")
    content = page("report.html.j2", lambda figures: context(run, analysis, figures, presets or {}))
    figures_of_it = json.dumps(analysis.as_dict(), indent=2, allow_nan=False)
    with new_file(path) as aside, new_file(path.with_name(f"{path.stem}.analysis.json")) as beside:  # both, or neither
        aside.write_text(content, encoding="utf-8", newline="")
        beside.write_text(figures_of_it + "\n", encoding="utf-8", newline="")
    return path


def page(template: str, context_of: Callable[[Any], dict[str, Any]]) -> str:
    """A template's page.

    Args:
        template: its file.
        context_of: gives what it takes, from the module that draws figures.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2

        from kimiajax.report import figures
    except ModuleNotFoundError as error:
        raise UserError(f'report: {error.name} is not installed; `pip install "kimiajax[report]"`') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kimiajax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "p": p_value, "number": "{:,}".format}
    return visible(environment.get_template(template).render(context_of(figures)))


def context(run: StoredRun, analysis: Analysis, figures: Any, presets: Presets) -> dict[str, Any]:
    """What the template takes, section by section."""
    results, names = run.results, formats.labels(run)
    rows = [{**row, "label": names[row["name"]]} for row in results["rows"]]
    rows = rows if run.is_kimia else [{**row, "paper": None} for row in rows]
    classes = run.classes
    guess = 1 / run.manifest.num_scans
    whole = [row for row in rows if row["family"] != "blocks"]
    scored = [row for row in whole if row["eta_p"] is not None]
    floors = [row for row in rows if row["family"] == "floor"]
    recalls = _recalls(analysis, scored)
    return {
        "title": f"{results['preset']}: {run.folder.resolve().name}",
        "version": __version__,
        "headline": headline(results),
        "warnings": warnings_of(run.seeds),
        "several": len(run.seeds) > 1,
        "seeds": results.get("seeds", [results["config"]["seed"]]),
        "families": [
            (formats.FAMILIES[family], [_row(row, analysis, run) for row in whole if row["family"] == family])
            for family in formats.FAMILIES
            if any(row["family"] == family for row in whole)
        ],
        "blocks": [_row(row, analysis, run) for row in rows if row["family"] == "blocks"],
        "scores": SCORES,
        "overview": [figures.scores_figure(whole, analysis.intervals, "eta_total", guess**2)] if scored else [],
        "notes": formats.notes(run, analysis),
        "forests": [figures.forest_figure(analysis.pairs, names, score) for score in SHOWN_PAIRS if analysis.pairs],
        "pairs": [(names[pair.first], names[pair.second], pair) for pair in analysis.pairs],
        "tuning": formats.tuning(run, analysis),
        "depths": _depths(run, rows, analysis, figures),
        "below": [(names[pair.first], names[pair.second], pair) for pair in analysis.depth],
        "kimia": run.is_kimia,
        "classes": classes,
        "claims": [(c, analysis.printed[c.name], analysis.computed[c.name]) for c in CLAIMS if run.is_kimia],
        "marks": MARKS,
        "floors": floors,
        "margins": _margins(analysis, names, floors) if floors else [],
        "beaten": None if (beaten := beaten_by_histogram(analysis)) is None else [names[row] for row in beaten],
        "confusions": [_confusion(row, analysis, figures, run) for row in scored if row["family"] == "table"],
        "more_confusions": [_confusion(row, analysis, figures, run) for row in scored if row["family"] != "table"],
        "recall": [figures.recall_figure(recalls, [row["label"] for row in scored], classes)] if scored else [],
        "recalls": [(row["label"], shares.tolist()) for row, shares in zip(scored, recalls)],
        "curves": [
            figures.curves_figure(histories, row["label"])
            for row in rows
            if (histories := _histories(run, row["name"])) and any(map(any, map(dict.values, histories)))
        ],
        "samples": _images(run.seeds[0]["pictures"], run.folders[0], figures),
        "lost": _lost(run),
        "distribution": figures.distribution_figure(run.manifest.counts("train"), run.manifest.counts("test"), classes),
        "explained": [
            (row["label"], images)
            for row in rows
            if row["family"] == "table" and (images := _pictures(run, row, figures))
        ],
        "retrieved": [row for row in rows if row["retrieval"]],
        "neighbours": [
            (row["label"], _by_query(images))
            for row in rows
            if row["retrieval"] and (images := _pictures(run, row, figures))
        ],
        "elsewhere": paper.ELSEWHERE,
        "data": _data(run),
        "audits": [(seed["config"]["seed"], seed["data"]["audit"]) for seed in run.seeds],
        "weights": [
            (network, [flat({**each, "parent": None}) for each in ancestry(lineage)])
            for network, lineage in run.seeds[0]["weights"].items()
        ],
        "environment": flat(run.seeds[0]["environment"]),
        "config": [(name, _plain(value)) for name, value in results["config"].items()],
        "rerun": rerun(results, presets),
        "draws": analysis.draws,
        "margin": MARGIN,
        "over_seeds": over_seeds(len(run.seeds)),
        "level": LEVEL,
    }


def _row(row: dict[str, Any], analysis: Analysis, run: StoredRun) -> dict[str, Any]:
    intervals = analysis.intervals.get(row["name"], {})
    return {
        **row,
        "intervals": intervals,
        "spread": formats.spread(row) if len(run.seeds) > 1 else None,
        "count": formats.counts(row),
        "published": formats.papers(row),
    }


def _depths(run: StoredRun, rows: Sequence[dict[str, Any]], analysis: Analysis, figures: Any) -> list[Any]:
    """A figure for each network of whose blocks there are rows with an accuracy."""
    found = []
    for network, blocks in run.results["blocks"].items():
        series: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["family"] == "blocks" and row["network"] == network and row["eta_p"] is not None:
                block, _, form = row["block"].rpartition(".")
                name = f"{SERIES.get(row['scheme'], row['scheme'])}, {FORMS[form]}"
                if block in blocks:
                    series.setdefault(name, []).append({**row, "depth": blocks.index(block)})
        if series:
            against = {row["against"] for each in series.values() for row in each}
            lines = [row for row in rows if row["name"] in (*against, HISTOGRAM) and row["eta_p"] is not None]
            found.append(figures.depth_figure(network, blocks, series, lines, analysis.intervals))
    return found


def _margins(analysis: Analysis, names: dict[str, str], floors: Sequence[dict[str, Any]]) -> list[Any]:
    """Each of the table's rows with its margin over each floor, in the floors' order."""
    found: dict[str, dict[str, Any]] = {}
    for pair in analysis.margins:
        found.setdefault(pair.first, {})[pair.second] = pair
    return [(names[row], [pairs.get(floor["name"]) for floor in floors]) for row, pairs in found.items()]


def _confusion(row: dict[str, Any], analysis: Analysis, figures: Any, run: StoredRun) -> Any:
    return figures.confusion_figure(analysis.confusion[row["name"]], row["label"], len(run.seeds), run.classes)


def _recalls(analysis: Analysis, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    if not rows:
        return np.empty((0, 0))
    matrices = np.stack([analysis.confusion[row["name"]] for row in rows])
    tested = matrices.sum(axis=2)
    return np.divide(
        np.diagonal(matrices, axis1=1, axis2=2), tested, out=np.full(tested.shape, np.nan), where=tested > 0
    )


def _histories(run: StoredRun, name: str) -> list[dict[str, Any]]:
    return [row["history"] for seed in run.seeds for row in seed["rows"] if row["name"] == name]


def _pictures(run: StoredRun, row: dict[str, Any], figures: Any) -> list[dict[str, Any]]:
    records = next((each["pictures"] for each in run.seeds[0]["rows"] if each["name"] == row["name"]), [])
    return _images(records, run.folders[0], figures)


def _images(records: Sequence[dict[str, Any]], folder: Path, figures: Any) -> list[dict[str, Any]]:
    """Pictures with their files in them, without those that are lost."""
    return [
        {**record, "source": figures.data_url((folder / record["file"]).read_bytes(), "image/png")}
        for record in records
        if is_picture(folder, record["file"])
    ]


def _lost(run: StoredRun) -> list[str]:
    """The files of pictures that are missing, as of a copied run, or damaged."""
    results, folder = run.seeds[0], run.folders[0]
    records = [*results["pictures"], *(record for row in results["rows"] for record in row["pictures"])]
    return [record["file"] for record in records if not is_picture(folder, record["file"])]


def _by_query(images: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The pictures of each query: itself, and its nearest in their order; none where its own is lost."""
    queries: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        queries.setdefault(image["query"], []).append(image)
    return [own for own in queries.values() if own[0]["rank"] == 0]


def _data(run: StoredRun) -> list[tuple[str, str]]:
    data = run.seeds[0]["data"]
    groups = data.get("groups")
    return [
        ("source", data["source"]),
        ("kind", data["kind"]),
        ("manifest, SHA-256", data["manifest_sha256"]),
        ("pixels, SHA-256", _plain(data["pixels_sha256"])),
        ("rules", _plain(data["rules"])),
        *([("left out", left_out)] if (left_out := left_out_of(data)) else []),
        (run.classes.plural, ", ".join(data["names"])),
        *([("groups", _plain({**groups, "shared": groups["shared"] or "none"}))] if groups else []),
    ]


def flat(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in record.items() if value is not None]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items() if each is not None)
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)
