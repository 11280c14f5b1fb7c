"""The report's figures, each an SVG with the words that stand for it where it cannot be seen."""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import bidirectional

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import findfont, get_font

from kimiajax.evaluation.claims import LEVEL
from kimiajax.evaluation.statistics import Interval
from kimiajax.runs.classes import Classes
from kimiajax.shapes import Float, Int
from kimiajax.text import over_seeds

MOST_TICKS = 40  # names along an axis
LONGEST_LABEL = 18  # characters of one
WIDTH = 4.7  # inches: as wide as a phone, so that nothing is made smaller there
INK, GREY, BLUE, ORANGE = "#1b1f24", "#6a737d", "#0b5fa5", "#b35900"  # at least 4.5 : 1 on white
CURVES = (BLUE, ORANGE, "#1a7f37", "#8250df", GREY, "#a40e26")
FAMILY_COLOURS = {"table": BLUE, "floor": GREY, "retrieval": ORANGE}  # those of blocks have figures of their own
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e1e4e8",
    "grid.linewidth": 0.7,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "kimiajax",  # the same figure is the same file
}


@dataclass(frozen=True)
class Figure:
    """Attributes:
    svg: the picture.
    alt: what it shows, in words.
    caption: what stands below it.
    """

    svg: bytes
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """The picture as the address of an <img>, so that it needs no file."""
        return data_url(self.svg, "image/svg+xml")


def data_url(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@matplotlib.rc_context(STYLE)
def scores_figure(
    rows: Sequence[dict[str, Any]], intervals: dict[str, dict[str, Interval]], score: str, guess: float
) -> Figure:
    """A score of every row with its interval, and the paper's figure where one stands beside it."""
    rows = [row for row in rows if row[score] is not None]
    canvas = Canvas(figsize=(WIDTH, 0.9 + 0.24 * len(rows)))
    axes = canvas.subplots()
    for place, row in enumerate(rows):
        low, high = intervals[row["name"]][score]
        colour = FAMILY_COLOURS[row["family"]]
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(100 * row[score], place, "o", color=colour, markersize=5)
        if row["paper"]:
            axes.plot(100 * row["paper"][score], place, "D", markersize=5, markerfacecolor="white", color=INK)
    axes.axvline(100 * guess, color=GREY, linestyle=":", linewidth=1)
    labels = [row["label"] for row in rows]
    axes.set(yticks=range(len(rows)), yticklabels=labels, xlim=(0, 100), xlabel=f"{score}, per cent")
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    told = "; ".join(f"{row['label']} {100 * row[score]:.1f}, {_span(intervals[row['name']][score])}" for row in rows)
    papers = "the paper's figures are diamonds, " if any(row["paper"] for row in rows) else ""
    caption = (
        f"{score} with 95 % intervals (dots and bars); {papers}the dotted line is guessing. Blue: the table; grey: "
        "floors of trivial features; orange: retrieval."
    )
    return Figure(_svg(canvas), f"{score} in per cent, with 95 % intervals: {told}.", caption)


@matplotlib.rc_context(STYLE)
def forest_figure(pairs: Sequence[Any], names: dict[str, str], score: str) -> Figure:
    """The differences of pairs of rows with their intervals; bold where Holm's correction leaves them significant."""
    canvas = Canvas(figsize=(WIDTH, 0.9 + 0.3 * len(pairs)))
    axes = canvas.subplots()
    for place, pair in enumerate(pairs):
        low, high = pair.intervals[score]
        sure = pair.adjusted[score] <= LEVEL
        style = {"color": BLUE if sure else GREY, "linewidth": 2.6 if sure else 1.4, "solid_capstyle": "butt"}
        axes.plot([100 * low, 100 * high], [place, place], **style)
        axes.plot(100 * pair.difference[score], place, "o" if sure else "s", color=style["color"], markersize=4.5)
    axes.axvline(0, color=INK, linewidth=1)
    labels = [f"{names[pair.first]}\n- {names[pair.second]}" for pair in pairs]
    axes.set(yticks=range(len(pairs)), yticklabels=labels, xlabel=f"difference of {score}, points")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    told = "; ".join(
        f"{names[pair.first]} less {names[pair.second]} {100 * pair.difference[score]:+.1f}, "
        f"{_span(pair.intervals[score])}{', significant' if pair.adjusted[score] <= LEVEL else ''}"
        for pair in pairs
    )
    caption = (
        f"Differences of {score} in points with 95 % intervals, on the same test patches. Blue and thick: "
        "significant at 5 % after Holm's correction for all of them."
    )
    return Figure(_svg(canvas), f"Differences of {score} in points: {told}.", caption)


@matplotlib.rc_context(STYLE)
def depth_figure(
    title: str,
    blocks: Sequence[str],
    series: dict[str, list[dict[str, Any]]],
    lines: Sequence[dict[str, Any]],
    intervals: dict[str, dict[str, Interval]],
) -> Figure:
    """Scores over a network's depth.

    Args:
        title: the network's name.
        blocks: its blocks, first to last.
        series: rows of blocks by what is done with them, each with the place of its block as "depth".
        lines: rows whose scores are a line with a band: the network's features, the gray histogram.
        intervals: of each row and score.
    """
    canvas = Canvas(figsize=(WIDTH, 5.2))
    panels = canvas.subplots(2, sharex=True)
    for axes, score in zip(panels, ("eta_p", "eta_total")):
        for row in lines:
            colour, style = (GREY, ":") if row["family"] == "floor" else (BLUE, "--")
            low, high = intervals[row["name"]][score]
            axes.axhspan(100 * low, 100 * high, color=colour, alpha=0.12, linewidth=0)
            axes.axhline(100 * row[score], color=colour, linestyle=style, linewidth=1, label=row["label"])
        for colour, (name, rows) in zip(itertools.cycle((BLUE, ORANGE, *CURVES[2:])), series.items()):
            spans = np.array([intervals[row["name"]][score] for row in rows])
            places, values = [row["depth"] for row in rows], np.array([row[score] for row in rows])
            around = np.abs(spans.T - values)
            axes.errorbar(places, 100 * values, 100 * around, fmt="o-", color=colour, markersize=4, lw=1.2, label=name)
        axes.set(ylim=(0, 100), ylabel=f"{score}, per cent")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    panels[0].legend(frameon=False, fontsize=7)
    panels[1].set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", rotation_mode="anchor")
    told = "; ".join(
        f"{row['label']} {100 * row['eta_total']:.1f}, {_span(intervals[row['name']]['eta_total'])}"
        for rows in series.values()
        for row in rows
    )
    told += "".join(f"; {row['label']} {100 * row['eta_total']:.1f}" for row in lines)
    beside = " and ".join(row["label"] for row in lines)
    caption = f"{title}: scores over depth with 95 % intervals{f'; lines with bands: {beside}' if lines else ''}."
    return Figure(_svg(canvas), f"{title}: eta_total in per cent over depth, with 95 % intervals: {told}.", caption)


@matplotlib.rc_context(STYLE)
def confusion_figure(matrix: Int[np.ndarray, "s s"], name: str, seeds: int, classes: Classes) -> Figure:
    """Which scan's patches were taken for which, as shares of the scan's patches."""
    word = classes.word
    tested = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, tested, out=np.zeros(matrix.shape), where=tested > 0)
    side = max(3.4, 1.8 + 0.14 * len(matrix)) if classes.named else 3.4
    canvas = Canvas(figsize=(side, side - 0.1))
    axes = canvas.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    _scan_ticks(axes, classes)
    axes.set(xlabel=f"predicted {word}", ylabel=f"true {word}", title=name)
    axes.spines[:].set_visible(False)
    canvas.colorbar(image, ax=axes, shrink=0.75, label=f"per cent of the {word}'s patches")
    right = np.trace(matrix)
    off = matrix - np.diag(np.diag(matrix))
    worst = np.unravel_index(off.argmax(), off.shape)
    told = f"{right} of {matrix.sum()} right{over_seeds(seeds)}"
    if off.any():
        first, second = (classes.call(int(place)) for place in worst)
        told += f"; most often confused, {first} taken for {second}, {off[worst]} times"
    return Figure(_svg(canvas), f"Confusion matrix of {name}: {told}.", f"{name}: {told}.")


@matplotlib.rc_context(STYLE)
def recall_figure(recalls: Float[np.ndarray, "r s"], names: Sequence[str], classes: Classes) -> Figure:
    """The share of each scan's test patches that each row got right; a scan without any is white."""
    canvas = Canvas(figsize=(WIDTH, 1.2 + 0.22 * len(names) + (0.6 if classes.named else 0)))
    axes = canvas.subplots()
    image = axes.imshow(100 * np.ma.masked_invalid(recalls), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    _scan_ticks(axes, classes, vertical=False)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=classes.word)
    axes.spines[:].set_visible(False)
    canvas.colorbar(image, ax=axes, location="top", shrink=0.6, label="recall, per cent")
    tested = np.flatnonzero(~np.isnan(recalls[0]))
    mean = recalls[:, tested].mean(axis=0)
    hardest, easiest = (classes.call(int(tested[place])) for place in (mean.argmin(), mean.argmax()))
    told, word = f"on average hardest is {hardest}, easiest {easiest}", classes.word
    return Figure(_svg(canvas), f"Recall by row and {word}: {told}.", f"Recall of each {word} by row; {told}.")


@matplotlib.rc_context(STYLE)
def distribution_figure(train: Sequence[int], test: Sequence[int], classes: Classes) -> Figure:
    """The paper's Fig. 2: training and test patches of each scan."""
    canvas = Canvas(figsize=(WIDTH, 3.8 if classes.named else 3.2))
    both = canvas.subplots(2, sharex=True)
    for axes, counts, name, colour in zip(both, (train, test), ("training", "test"), (BLUE, ORANGE)):
        axes.bar(range(len(counts)), counts, color=colour)
        axes.set_ylabel(f"{name}\npatches")
    word = classes.word
    _scan_ticks(both[-1], classes, vertical=False)
    both[-1].set_xlabel(word)
    counts = [f"{_counts(counts)} a {word}" for counts in (train, test)]
    told = f"{sum(train):,} training patches, {counts[0]}; {sum(test):,} test patches, {counts[1]}"
    return Figure(_svg(canvas), f"Patches of each {word}: {told}.", f"Patches of each {word}: {told}.")


@matplotlib.rc_context(STYLE)
def sweep_figure(axis: dict[str, Any], values: Sequence[Any], score: str, guess: float) -> Figure:
    """A score along one axis of a sweep: a line a row with 95 % intervals, a dot a seed, a ring at the centre."""
    guess = guess**2 if score == "eta_total" else guess
    canvas = Canvas(figsize=(WIDTH, 3.4))
    axes = canvas.subplots()
    told, count = [], len(axis["curves"])
    for number, curve in enumerate(axis["curves"]):
        points = [point for point in curve["points"] if point[score] is not None]
        shift = 0.06 * (number - (count - 1) / 2)  # so that bars at one value stand beside each other
        places = np.array([values.index(point["value"]) for point in points]) + shift
        colour, middle = CURVES[number % len(CURVES)], [100 * point[score] for point in points]
        style = "-" if number < len(CURVES) else "--"
        axes.plot(places, middle, style, color=colour, linewidth=1.3, label=curve["approach"])
        for place, point in zip(places, points):
            low, high = point["intervals"][score]
            axes.plot([place, place], [100 * low, 100 * high], color=colour, linewidth=2, alpha=0.55)
            seeds = [100 * value for value in point["by_seed"][score] if value is not None]
            axes.plot([place] * len(seeds), seeds, ".", color=colour, markersize=3)
            ring = point["value"] == curve["centre"]
            face = "white" if ring else colour
            axes.plot(place, 100 * point[score], "o", color=colour, markersize=6 if ring else 4, mfc=face, zorder=3)
        drawn = (f"{point['value']}: {value:.1f}" for point, value in zip(points, middle))
        told.append(f"{curve['approach']} {', '.join(drawn)}")
    axes.axhline(100 * guess, color=GREY, linestyle=":", linewidth=1)
    axes.set(xticks=range(len(values)), xticklabels=values, xlabel=axis["title"], ylabel=f"{score}, per cent")
    axes.set(xlim=(-0.4, len(values) - 0.6), ylim=(0, None))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    canvas.legend(loc="outside upper left", ncols=2, frameon=False)
    alt = f"{score} in per cent over {axis['title']}: {'; '.join(told)}."
    return Figure(_svg(canvas), alt, f"{score} over {axis['title']}; a ring is the centre, the dotted line guessing.")


@matplotlib.rc_context(STYLE)
def curves_figure(histories: Sequence[dict[str, list[dict[str, Any]]]], name: str) -> Figure:
    """Loss and accuracy on training patches over the epochs of a row's phases, one after another, a line a seed."""
    canvas = Canvas(figsize=(WIDTH, 2.3))
    loss, accuracy = canvas.subplots(1, 2)
    told = []
    for history in histories:
        start = 0
        for phase, epochs in history.items():
            if not epochs:
                continue
            places = start + np.array([epoch["epoch"] for epoch in epochs])
            for axes, key, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
                values = [np.nan if e[key] is None else scale * e[key] for e in epochs]
                axes.plot(places, values, color=BLUE if phase != "head" else ORANGE, linewidth=1.2)
            start = places[-1]
            if history is histories[0]:
                told.append(_phase(phase, epochs))
    loss.set(xlabel="epoch", ylabel="loss, nats", ylim=(0, None))
    accuracy.set(xlabel="epoch", ylabel="accuracy, per cent", ylim=(0, 102))
    told = "; ".join(told) + (f"; losses of the first of {len(histories)} seeds" if len(histories) > 1 else "")
    return Figure(_svg(canvas), f"Training curves of {name}: {told}.", f"{name}, on training patches: {told}.")


def _phase(phase: str, epochs: Sequence[dict[str, Any]]) -> str:
    name = {"head": "the head alone (orange)", "fine_tuning": "fine-tuning (blue)"}.get(phase, "training (blue)")
    first, last = ("-" if e["loss"] is None else f"{e['loss']:.3g}" for e in (epochs[0], epochs[-1]))
    return f"{name}, {len(epochs)} epochs, loss {first} to {last}"


def _scan_ticks(axes: Any, classes: Classes, vertical: bool = True) -> None:
    """Marks classes along the axes: by names where they have such, and scans by some of their numbers."""
    count = len(classes.labels)
    if not classes.named:
        ticks = range(0, count, 1 if count <= 12 else 4)
        axes.set_xticks(ticks)
        if vertical:
            axes.set_yticks(ticks)
        return
    step = -(-count // MOST_TICKS)
    ticks, size = range(0, count, step), 7 if count <= 12 else 6
    labels = short_labels(classes.labels)[::step]
    style = {"fontsize": size, "parse_math": False}
    axes.set_xticks(ticks, labels, rotation=60, ha="right", rotation_mode="anchor", **style)
    if vertical:
        axes.set_yticks(ticks, labels, **style)


def short_labels(labels: Sequence[str]) -> list[str]:
    """Names for an axis: whole where they are short, else cut, and with their number where that leaves two alike.

    What the figures' font cannot draw, or only the wrong way round, is its number alone.
    """
    cut = [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1].rstrip()}…" for label in labels]
    told = [label if cut.count(label) == 1 else f"{number} {label}" for number, label in enumerate(cut)]
    return [label if _is_drawable(label) else str(number) for number, label in enumerate(told)]


def _is_drawable(text: str) -> bool:
    font = get_font(findfont(STYLE["font.family"]))
    return all(font.get_char_index(ord(c)) and bidirectional(c) not in ("R", "AL") for c in text)


def _span(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _counts(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}"


def _svg(canvas: Canvas) -> bytes:
    content = io.BytesIO()
    canvas.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
