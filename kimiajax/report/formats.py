"""A run's table as text for papers: Markdown, CSV and LaTeX, with intervals."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from kimiajax.evaluation.analysis import Analysis, beaten_by_histogram
from kimiajax.evaluation.claims import CLAIMS, LEVEL
from kimiajax.io.files import csv_text
from kimiajax.report.table import label
from kimiajax.runs.reader import StoredRun
from kimiajax.runs.warnings import SCORES, headline, warnings_of
from kimiajax.text import cautions, p_value, percent, points, visible

MARKUP = re.compile(r"[\\`*\[\]<>&|]|(?<![^\W_])_|_(?![^\W_])")  # of Markdown; eta_p is none
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}
FAMILIES = {
    "table": "the table",
    "floor": "floors of trivial features",
    "retrieval": "nearest training patch",
    "blocks": "other blocks: the mean over space, or all values (flat)",
}
NOT_SHOWN = " These test patches do not show a difference."


def markdown(run: StoredRun, analysis: Analysis) -> str:
    """The table with 95 % intervals, the differences, the claims and the notes."""
    several = len(run.seeds) > 1
    head = ["approach", "weights", *SCORES, *(["sd over seeds"] if several else ["correct"])]
    head += ["paper"] if run.is_kimia else []
    rows = [
        [
            _as_words(label(row)),
            _as_words(row["weights"]),
            *(_with_interval(row, analysis, score) for score in SCORES),
            spread(row) if several else counts(row),
            *([papers(row)] if run.is_kimia else []),
        ]
        for row in run.results["rows"]
    ]
    parts = [
        *(f"**{_as_words(warning)}**" for warning in warnings_of(run.seeds)),
        _as_words(headline(run.results)),
        _markdown_table(head, rows, left=2),
        "95 % intervals in brackets.",
    ]
    if analysis.pairs:
        names = {name: _as_words(called) for name, called in labels(run).items()}
        head = ["difference", *SCORES, *(f"p of {score}, Holm" for score in SCORES)]
        rows = [
            [
                f"{names[pair.first]} - {names[pair.second]}",
                *(_points(pair.difference[score], pair.intervals[score]) for score in SCORES),
                *(p_value(pair.adjusted[score]) for score in SCORES),
            ]
            for pair in analysis.pairs
        ]
        parts.append(_markdown_table(head, rows, left=1))
    if run.is_kimia:
        rows = [[c.sentence, analysis.printed[c.name].verdict, analysis.computed[c.name].verdict] for c in CLAIMS]
        parts.append(_markdown_table(["what the paper concludes", "by its own table", "by this one"], rows, left=3))
    told = map(_as_words, [*tuning(run, analysis), *notes(run, analysis)])
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(told, start=1)))
    return "\n\n".join(parts)


def as_csv(run: StoredRun, analysis: Analysis) -> str:
    """A line a row, scores and intervals as fractions; what does not exist is empty."""
    ends = ("", "_low", "_high", "_sd", *(("_paper",) if run.is_kimia else ()))
    bounds = [f"{score}{end}" for score in SCORES for end in ends]
    warnings, lines = " ".join(warnings_of(run.seeds)), []
    for row in run.results["rows"]:
        figures: list[Any] = []
        for score in SCORES:
            low, high = analysis.intervals.get(row["name"], {}).get(score, (None, None))
            published = [row["paper"][score] if row["paper"] else None] if run.is_kimia else []
            figures += [row[score], low, high, row.get(f"{score}_sd"), *published]
        about = [row[key] for key in ("name", "approach", "family", "weights", "correct", "tested")]
        lines.append([*about, len(run.seeds), *figures, warnings])
    head = ["row", "approach", "family", "weights", "correct", "tested", "seeds", *bounds, "warnings"]
    return csv_text(head, lines).rstrip()


def latex(run: StoredRun, analysis: Analysis) -> str:
    """A `tabular` of the booktabs package."""
    beside = r" & paper's $\eta_\mathrm{total}$" if run.is_kimia else ""
    lines = [
        *(f"% {_line(text)}" for text in (headline(run.results), *tuning(run, analysis), *notes(run, analysis))),
        rf"\begin{{tabular}}{{lrrr{'r' if run.is_kimia else ''}}}",
        r"\toprule",
        rf"approach & $\eta_p$ & $\eta_W$ & $\eta_\mathrm{{total}}${beside} \\",
    ]
    lines += [
        rf"\multicolumn{{{5 if run.is_kimia else 4}}}{{l}}{{\emph{{{_escaped(warning)}}}}} \\"
        for warning in warnings_of(run.seeds)
    ]
    family = None
    for row in run.results["rows"]:
        if row["family"] != family:
            family = row["family"]
            lines.append(r"\midrule")
        figures = [_with_interval(row, analysis, score).replace("-", "--") for score in SCORES]
        published = [percent(row["paper"]["eta_total"]) if row["paper"] else ""] if run.is_kimia else []
        lines.append(" & ".join([_escaped(label(row)), *figures, *published]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


FORMATS: dict[str, Callable[[StoredRun, Analysis], str]] = {"markdown": markdown, "csv": as_csv, "latex": latex}


def notes(run: StoredRun, analysis: Analysis) -> list[str]:
    """What a reader must know: the run's own notes, and what its statistics add."""
    names, found = labels(run), list(run.results["notes"])
    beaten = beaten_by_histogram(analysis)
    if beaten:
        listed = ", ".join(names[row] for row in beaten)
        found.append(f"Not shown to be above a gray histogram, by eta_p: {listed}.")
    pairs = [pair.intervals for pair in (*analysis.pairs, *analysis.tuning, *analysis.margins, *analysis.depth)]
    intervals = [bounds for scores in (*analysis.intervals.values(), *pairs) for bounds in scores.values()]
    found += cautions(run.manifest.counts("test"), intervals, run.classes.word, run.classes.labels)
    if analysis.coverage is not None:
        found.append(
            f"In simulated test sets with these counts, {100 * analysis.coverage:.0f} of 100 intervals of eta_w hold "
            "the truth."
        )
    if analysis.smallest is not None:
        found.append(
            f"The smallest difference of eta_p that {len(run.scans):,} test patches would show in 80 of 100 cases, by "
            f"a single test at 5 %, is {percent(analysis.smallest)} points, where two rows are apart on "
            f"{percent(analysis.discordant)} % of the patches, as these are on average. For one of many pairs it is "
            "larger."
        )
    elif analysis.discordant:
        found.append(
            f"{len(run.scans):,} test patches, on {percent(analysis.discordant)} % of which two rows are apart on "
            "average, show no difference of eta_p in 80 of 100 cases, however large."
        )
    return [*found, _task(run)]


def _task(run: StoredRun) -> str:
    """A sentence on what the scores say of other slides."""
    if run.classes.word == "scan":
        return (
            "Every class is one scan, and training and test patches come from the same slides: the task is to "
            "recognise a scan, and says little of how a network does on other slides."
        )
    groups = run.seeds[0]["data"].get("groups")
    if groups is None:
        return (
            "Nothing says which patches are of one slide or patient (--groups): where training and test patches share "
            "some, these figures are higher than those on other slides would be."
        )
    if groups["shared"]:
        return f"Patches of one {groups['column']} are in training and in test, so that figures are too high."
    return (
        f"No {groups['column']} has patches both in training and in test, as {groups['column']} is given by --groups."
    )


def tuning(run: StoredRun, analysis: Analysis) -> list[str]:
    """Returns a sentence for each fine-tuned row on what it changed of its head."""
    names, found = labels(run), []
    tests = len(analysis.tuning)
    corrected = f" after Holm's correction for {tests}" if tests > 1 else ""
    for pair in analysis.tuning:
        low, high = map(points, pair.intervals["eta_total"])
        p = pair.adjusted["eta_total"]
        found.append(
            f"Fine-tuning changed eta_total by {points(pair.difference['eta_total'])} points (95 % interval {low} to "
            f"{high}): {names[pair.first]} against {names[pair.second]}, the head that it began with (p {p_value(p)}"
            f"{corrected}).{NOT_SHOWN if p > LEVEL else ''}"
        )
    return found


def labels(run: StoredRun) -> dict[str, str]:
    """How each row is called, by its name."""
    return {name: label(row) for name, row in run.rows.items()}


def counts(row: dict[str, Any]) -> str:
    return "-" if row["correct"] is None else f"{row['correct']}/{row['tested']}"


def papers(row: dict[str, Any]) -> str:
    """The paper's three figures of a row."""
    return "" if row["paper"] is None else " / ".join(percent(row["paper"][score]) for score in SCORES)


def spread(row: dict[str, Any]) -> str:
    """The standard deviations over seeds, of the three scores."""
    return " / ".join(percent(row.get(f"{score}_sd")) for score in SCORES)


def _with_interval(row: dict[str, Any], analysis: Analysis, score: str) -> str:
    if row[score] is None:
        return "-"
    low, high = analysis.intervals[row["name"]][score]
    return f"{percent(row[score])} [{percent(low)}, {percent(high)}]"


def _points(difference: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{points(difference)} [{points(low)}, {points(high)}]"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """With its first columns to the left, and the others to the right."""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _line(text: str) -> str:
    """A text from anywhere as one line that steers nothing."""
    return " ".join(visible(text).split())


def _as_words(text: str) -> str:
    """The same for Markdown, in which nothing of it is a tag, a link, an emphasis or the end of a cell."""
    return MARKUP.sub(r"\\\g<0>", _line(text))


def _escaped(text: str) -> str:
    """The same for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in _line(text))
