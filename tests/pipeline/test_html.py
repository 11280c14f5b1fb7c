"""What a report says of stored runs: the same numbers as `results.json`, read by a machine that sees no picture."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from support.stored_runs import manifest_of, predictions_of, write_run

from kimiajax import paper
from kimiajax.cli.main import main
from kimiajax.evaluation.analysis import analyse, beaten_by_histogram, unfit
from kimiajax.evaluation.claims import CLAIMS, OPEN
from kimiajax.evaluation.stored import read_run
from kimiajax.report.formats import FORMATS, notes
from kimiajax.report.table import render_table
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.warnings import SCORES

pytestmark = pytest.mark.usefixtures("undrawn")  # but for the page that several tests share
TESTED = [20, 16, 9, 30]
TABLE = ("cnn", "fe_vgg16", "tl_vgg16", "fe_inception_v3", "tl_inception_v3")
ETA_P = {
    **dict(zip(TABLE, (0.5, 0.6, 0.65, 0.8, 0.9))),
    "floor_histogram": 0.6,
    "floor_lbp": 0.3,
    "nn_vgg16_cosine": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def published():
    """The runs here are of so many patches of each scan as were published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "TEST_PATCHES_PER_SCAN", tuple(TESTED))
        yield


VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """A page's text, its tables as rows of cells, its images, and whether its elements close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.cells, self.text, self.open = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if any(tag in ("td", "th") for tag in self.open):
            self.cells[-1][-1] = " ".join(f"{self.cells[-1][-1]} {data}".split())

    def row(self, first):
        return next(cells for cells in self.cells if cells and cells[0] == first)


def rows_for(seed, manifest, **changes):
    rng = np.random.default_rng(seed)
    scans = manifest.labels("test")
    rows = {row: predictions_of(rng, scans, manifest.num_scans, eta_p) for row, eta_p in ETA_P.items()}
    return {**rows, **changes}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    manifest = manifest_of(TESTED)
    write_run(folder, manifest, rows_for(0, manifest))
    return folder


@pytest.fixture(scope="module")
def page(stored):
    assert main(["report", str(stored)]) == 0
    return Page((stored / "report.html").read_text())


@pytest.fixture(scope="module")
def run(stored):
    return read_run(stored)


@pytest.fixture(scope="module")
def analysis(run):
    return analyse(run, draws=500)


def test_the_pages_numbers_are_those_of_the_results(stored, page):
    results = json.loads((stored / "results.json").read_text())
    assert len(results["rows"]) == len(ETA_P)
    for row in results["rows"]:
        name = row["approach"] if row["family"] != "retrieval" else f"{row['approach']}, {row['scheme']}"
        cells = page.row(name)
        for cell, score in zip(cells[2:5], SCORES):
            shown, low, high = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", cell).groups())
            assert shown == pytest.approx(100 * row[score], abs=0.005 + 1e-9)
            assert low <= shown <= high
        assert cells[5] == f"{row['correct']}/{row['tested']}"
        if row["paper"]:
            assert cells[6] == " / ".join(
                f"{100 * row['paper'][score]:.2f}" for score in ("eta_p", "eta_w", "eta_total")
            )


def test_the_page_needs_no_network_and_no_script(stored, page):
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    assert "url(" not in (stored / "report.html").read_text()


def test_every_picture_has_content_and_words_that_stand_for_it(page):
    assert len(page.images) > 15
    for image in page.images:
        assert len(image["src"]) > 100
        assert len(image["alt"]) > 15
    forests = [image["alt"] for image in page.images if image["alt"].startswith("Differences of eta_total")]
    assert len(forests) == 1
    assert forests[0].count(" less ") == 10


def test_what_runs_are_called_cannot_break_the_page(page):
    assert "A note of <the run> & its own." in " ".join(page.text)


def test_every_section_is_there_and_linked(page):
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert targets == {attrs["id"] for tag, attrs in page.tags if tag == "section"}
    text = " ".join(" ".join(page.text).split())
    for claim in CLAIMS:
        assert claim.sentence in text
    for said in ("Not comparable", "arXiv:2102.07611", "not verified", "kimiajax table demo", "No audit has seen"):
        assert said in text


def test_confusions_are_scikit_learns(run, analysis):
    for row, guess in run.predicted.items():
        np.testing.assert_array_equal(analysis.confusion[row], confusion_matrix(run.scans, guess[0], labels=range(4)))


def test_pairs_are_the_tables_ten_and_floors_a_family_of_their_own(analysis):
    assert len(analysis.pairs) == 10
    assert {pair.second for pair in analysis.margins} == {"floor_histogram", "floor_lbp"}
    assert len(analysis.margins) == 10


OF_BLOCKS = {"fe_vgg16": 0.6, "hd_vgg16": 0.4, "tl_vgg16": 0.8, "floor_histogram": 0.5}
OF_BLOCKS |= {
    "fe_vgg16@block1": 0.5,
    "fe_vgg16@block3": 0.9,
    "fe_vgg16@block3.flat": 0.3,
    "nn_vgg16@block1_cosine": 0.7,
}


@pytest.fixture(scope="module")
def of_blocks(tmp_path_factory):
    """The folder of a run with a head alone and rows of blocks."""
    folder, manifest, rng = tmp_path_factory.mktemp("blocks") / "run", manifest_of(TESTED), np.random.default_rng(3)
    scans = manifest.labels("test")
    write_run(folder, manifest, {row: predictions_of(rng, scans, 4, eta_p) for row, eta_p in OF_BLOCKS.items()})
    return folder


def test_fine_tuning_and_blocks_are_families_of_their_own_each_held_against_one_row(of_blocks):
    run = read_run(of_blocks)
    found = analyse(run, draws=500)
    assert [(pair.first, pair.second) for pair in found.tuning] == [("tl_vgg16", "hd_vgg16")]
    (tuned,) = found.tuning
    rows = run.rows
    assert tuned.difference["eta_total"] == pytest.approx(rows["tl_vgg16"]["eta_total"] - rows["hd_vgg16"]["eta_total"])
    assert tuned.adjusted == tuned.p_values, "one test needs no correction"
    blocks = [row for row in OF_BLOCKS if "@" in row]
    assert [(pair.first, pair.second) for pair in found.depth] == [(row, "fe_vgg16") for row in blocks]
    assert {row for pair in found.pairs for row in (pair.first, pair.second)} == {"fe_vgg16", "hd_vgg16", "tl_vgg16"}
    assert set(found.as_dict()) >= {"tuning", "depth"}


def test_a_claim_looks_at_the_papers_rows_alone(of_blocks, tmp_path):
    without = {row: guess for row, (guess,) in read_run(of_blocks).predicted.items() if row in ("fe_vgg16", "tl_vgg16")}
    write_run(tmp_path, manifest_of(TESTED), without)
    rulings = [analyse(read_run(folder), draws=500).computed for folder in (of_blocks, tmp_path)]
    assert rulings[0] == rulings[1]


def test_the_report_says_what_fine_tuning_changed_and_draws_scores_over_depth(of_blocks):
    assert main(["report", str(of_blocks)]) == 0
    page = Page((of_blocks / "report.html").read_text())
    (sentence,) = [text for text in page.text if text.startswith("Fine-tuning changed eta_total by")]
    assert "TL-VGG16 against HD-VGG16, the head that it began with (p" in sentence
    (depth,) = [image["alt"] for image in page.images if "over depth" in image["alt"]]
    rows = {row["name"]: row for row in json.loads((of_blocks / "results.json").read_text())["rows"]}
    for name, called in (
        ("fe_vgg16@block3", "FE-VGG16 block3"),
        ("fe_vgg16@block3.flat", "FE-VGG16 block3, flat"),
        ("nn_vgg16@block1_cosine", "NN-VGG16 block1, cosine"),
    ):
        assert f"{called} {100 * rows[name]['eta_total']:.1f}, " in depth
        against = [cells for cells in page.cells if cells and cells[:2] == [called, "FE-VGG16"]]
        assert len(against) == 1
    for name, called in (("fe_vgg16", "FE-VGG16"), ("floor_histogram", "gray histogram")):
        assert f"; {called} {100 * rows[name]['eta_total']:.1f}" in depth, "lines with bands"
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} >= {"#blocks"}
    for text in ("markdown", "latex"):
        shown = FORMATS[text](read_run(of_blocks), analyse(read_run(of_blocks), draws=500))
        assert "Fine-tuning changed" in shown


def test_the_printed_table_has_blocks_in_a_table_of_their_own(of_blocks):
    shown = render_table(json.loads((of_blocks / "results.json").read_text()))
    above, below = shown.split("Blocks, each as its mean over space")
    assert "HD-VGG16" in above
    assert all(name in below and name not in above for name in ("FE-VGG16 block3, flat", "NN-VGG16 block1"))
    assert "paper p" in above
    assert "paper p" not in below


def test_rows_that_do_not_beat_the_histogram_are_named(run, analysis):
    beaten = beaten_by_histogram(analysis)
    assert "cnn" in beaten
    assert "tl_inception_v3" not in beaten
    assert any(
        note.startswith("Not shown to be above a gray histogram, by eta_p: CNN (ours)") for note in notes(run, analysis)
    )


def test_the_printed_table_says_what_the_histogram_beats(run):
    shown = " ".join(render_table(run.results).split())
    assert "Not above a gray histogram, which knows nothing of tissue: CNN (ours)" in shown
    assert "TL-Inception-v3." not in shown
    alone = {**run.results, "rows": [row for row in run.results["rows"] if row["family"] == "table"]}
    assert "gray histogram" not in render_table(alone)


def test_the_printed_table_cuts_no_seconds_beside_a_long_name_of_weights(run):
    rows = [{**row, "weights": "inception_v3_photographs_notop.h5", "seconds": 12345.6} for row in run.results["rows"]]
    assert render_table({**run.results, "rows": rows}).count(" 12346\n") == len(rows)


def test_few_test_patches_and_the_smallest_difference_are_told(run, analysis):
    assert analysis.few == [2]
    told = " ".join(notes(run, analysis))
    assert "Fewer than 15 test patches are of scan 2: intervals of eta_w and eta_total may be too short." in told
    assert f"{100 * analysis.coverage:.0f} of 100 intervals of eta_w hold the truth" in told
    assert 0.9 < analysis.coverage < 0.97
    assert f"is {100 * analysis.smallest:.2f} points" in told
    assert 0.05 < analysis.smallest < 0.5


def test_the_analysis_is_kept_beside_the_report(stored, page):
    kept = json.loads((stored / "report.analysis.json").read_text())
    assert set(kept["printed"]) == {claim.name for claim in CLAIMS}
    assert (kept["draws"], kept["seed"], kept["margin_of_claims"]) == (10_000, 0, 0.02)
    assert len(kept["pairs"]) == 10


@pytest.mark.parametrize(
    ("settings", "warning", "reason"),
    [
        ({"synthetic": True}, "SYNTHETIC SCANS", "the scans are drawn by a program"),
        ({"unverified": "is not the official file"}, "NOT VERIFIED: the files that the data",
         "the data are not known to be those that were published"),
        ({"audit": {"verdict": "failed", "failed": ["copies"], "date": "x", "kimiajax": "1"}}, "AUDIT FAILED (copies)",
         "the audit of these data failed"),
        ({"weights": "random"}, "RANDOM WEIGHTS of vgg16 and inception_v3", "vgg16's weights are random"),
        ({"complete": False}, "NOT COMPLETE", None),
    ],
)  # fmt: skip
def test_what_makes_figures_worthless_stands_at_the_top(tmp_path, settings, warning, reason):
    manifest = manifest_of(TESTED)
    write_run(tmp_path, manifest, rows_for(0, manifest), **settings)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert text.index(warning) < text.index("<h1>")
    if reason:
        assert unfit(read_run(tmp_path))["fe_vgg16"] == reason
        found = analyse(read_run(tmp_path), draws=50).computed
        assert found.get("vgg16_tuning_does_not_help") == (None if "synthetic" in settings else (OPEN, reason))


def test_seeds_spread_apart_from_the_intervals(tmp_path):
    manifest = manifest_of(TESTED)
    seeds = [rows_for(seed, manifest) for seed in range(3)]
    results = write_run(tmp_path, manifest, {row: np.stack([each[row] for each in seeds]) for row in ETA_P}, seeds=3)
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    row = next(row for row in results["rows"] if row["name"] == "cnn")
    cells = page.row("CNN (ours)")
    assert cells[2].startswith(f"{100 * row['eta_p']:.2f} (")
    assert cells[5].startswith(f"{100 * row['eta_p_sd']:.2f} / ")
    assert "Means over seeds 0, 1, 2" in " ".join(page.text)
    run = read_run(tmp_path)
    one, all_three = (
        analyse(each, draws=800).intervals["cnn"]["eta_w"] for each in (read_run(tmp_path / "seed-0"), run)
    )
    assert all_three.high - all_three.low < one.high - one.low
    assert all(format_(run, analyse(run, draws=50)) for format_ in FORMATS.values())


def test_runs_with_little_in_them_are_reported_too(tmp_path):
    manifest = manifest_of([3, 2])
    for rows in ({"cnn": None}, {"floor_lbp": np.zeros(5, np.int32)}, {"cnn": manifest.labels("test")}):
        write_run(tmp_path, manifest, rows)
        assert main(["report", str(tmp_path)]) == 0
        Page((tmp_path / "report.html").read_text())
        for name in FORMATS:
            assert main(["report", str(tmp_path), "--format", name]) == 0


def test_the_histogram_is_beaten_only_where_it_was_computed(tmp_path):
    manifest = manifest_of(TESTED)
    said = "Every row of the table that has an accuracy is above the gray histogram."
    rows = rows_for(0, manifest)
    for changes, found in (
        ({"floor_histogram": None}, "The gray histogram was not computed."),
        ({}, "Not shown to be above the gray histogram:"),
        ({"floor_histogram": (manifest.labels("test") + 1) % 4}, said),
    ):
        write_run(tmp_path, manifest, {**rows, **changes})
        assert main(["report", str(tmp_path)]) == 0
        text = (tmp_path / "report.html").read_text()
        assert found in text
        assert (said in text) == (found == said)


def test_seeds_whose_audits_differ_are_marked_by_the_worst(tmp_path):
    manifest = manifest_of(TESTED)
    write_run(tmp_path, manifest, {row: np.stack([guess] * 2) for row, guess in rows_for(0, manifest).items()}, seeds=2)
    failed = {"verdict": "failed", "failed": ["copies"], "date": "x", "kimiajax": "1"}
    for path in (tmp_path / "seed-1" / "results.json", tmp_path / "results.json"):
        results = json.loads(path.read_text())
        results["data"]["audit"] = failed
        if path.parent == tmp_path:
            del results["data"]["audit"]
        RunFolder(path.parent).write_results(results)
    for name in ("html", *FORMATS):
        assert main(["report", str(tmp_path), "--format", name]) == 0
    assert "AUDIT FAILED (copies)" in (tmp_path / "report.html").read_text()
    assert unfit(read_run(tmp_path))["cnn"] == "the audit of these data failed"


def test_a_scan_without_test_patches_is_left_out_and_not_a_number(tmp_path):
    manifest = manifest_of([5, 0, 6, 4])
    write_run(tmp_path, manifest, rows_for(0, manifest))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert ">nan<" not in text
    assert Page(text).row("CNN (ours)")


def test_text_formats_carry_the_warnings(tmp_path, capsys):
    manifest = manifest_of(TESTED)
    write_run(tmp_path, manifest, rows_for(0, manifest), synthetic=True, weights="my|weights_1.h5")
    for name, said in (
        ("markdown", "**SYNTHETIC SCANS"),
        ("csv", "SYNTHETIC SCANS"),
        ("latex", r"\multicolumn{4}{l}{\emph{SYNTHETIC SCANS"),
    ):
        assert main(["report", str(tmp_path), "--format", name]) == 0
        shown = capsys.readouterr().out
        assert said in shown
        if name == "markdown":
            assert r"| my\|weights_1.h5 |" in shown


def test_a_report_goes_to_a_file_and_its_figures_beside_it(stored, tmp_path, capsys):
    assert main(["report", str(stored), "--out", str(tmp_path)]) == 2
    assert "is a folder; name the file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["report", str(stored), "--out", str(tmp_path / "mine.html")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.html", "mine.analysis.json"}


def test_pictures_that_are_gone_are_left_out(tmp_path):
    manifest = manifest_of(TESTED)
    write_run(tmp_path, manifest, rows_for(0, manifest))
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert "Training patch" not in (tmp_path / "report.html").read_text()


def test_the_table_as_text_has_the_results_numbers(stored, run, analysis, capsys):
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](run, analysis))))
    assert [line["row"] for line in lines] == list(ETA_P)
    for line in lines:
        row = run.rows[line["row"]]
        assert float(line["eta_w"]) == row["eta_w"]
        assert float(line["eta_w_low"]) <= row["eta_w"] <= float(line["eta_w_high"])
        assert line["eta_p_paper"] == ("" if row["paper"] is None else str(row["paper"]["eta_p"]))
    cnn = run.rows["cnn"]
    shown = f"{100 * cnn['eta_p']:.2f} ["
    assert main(["report", str(stored), "--format", "markdown"]) == 0
    markdown = capsys.readouterr().out
    assert f"| CNN (ours) | none | {shown}" in markdown
    assert "| TL-VGG16 - FE-Inception-v3 | " in markdown
    assert main(["report", str(stored), "--format", "latex", "--out", str(stored / "t.tex")]) == 0
    latex = (stored / "t.tex").read_text()
    assert f"CNN (ours) & {shown}" in latex
    assert latex.count(r"\midrule") == 3
    assert latex.count("{tabular}") == 2


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "results.json: no such file; give the folder of a run" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "report: needs RUN before any flag" in capsys.readouterr().err


NAMED = ["Carcinoma of the breast, grade 3 (after chemotherapy)", "肝細胞癌 高分化型", "Brüst $x_1$ & <b>", "colon_2"]


def write_named(folder, **data):
    """A run of classes that somebody named."""
    manifest = manifest_of([12, 3, 9, 30])
    results = write_run(folder, manifest, rows_for(0, manifest))
    results["data"] |= {"names": NAMED, "kind": "folder of images", **data}
    RunFolder(folder).write_results(results)


def test_classes_keep_their_names_and_the_paper_is_left_out(tmp_path, capsys):
    write_named(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    text = " ".join(" ".join(page.text).split())
    assert not any(said in text for said in ("the paper", "The paper", "paper:"))
    assert " scan " not in text.replace("scans.h5", "")
    assert {attrs["id"] for tag, attrs in page.tags if tag == "section"} & {"claims", "elsewhere"} == set()
    assert [page.row(f"{k} {name}")[0] for k, name in enumerate(NAMED)]
    assert f"class {NAMED[0]}" in text
    confusions = [image["alt"] for image in page.images if image["alt"].startswith("Confusion matrix")]
    assert all(re.search(rf"class ({'|'.join(map(re.escape, NAMED))}) taken for class", alt) for alt in confusions)
    assert "Nothing says which patches are of one slide or patient (--groups)" in text
    assert f"Fewer than 15 test patches are of class {', '.join(NAMED[:3])}: intervals" in text
    assert json.loads((tmp_path / "report.analysis.json").read_text())["computed"] == {}
    for name in FORMATS:
        capsys.readouterr()
        assert main(["report", str(tmp_path), "--format", name]) == 0
        assert "paper" not in capsys.readouterr().out


def test_groups_on_both_sides_stand_at_the_top_and_others_below(tmp_path):
    groups = {"column": "patient", "sha256": "x", "groups": 5, "train": 3, "test": 4, "shared": ["P1", "P2"]}
    for shared, told in ((["P1", "P2"], "LEAK: patient P1, P2 have patches in training and in test"), ([], None)):
        write_named(tmp_path, groups={**groups, "shared": shared})
        assert main(["report", str(tmp_path)]) == 0
        text = (tmp_path / "report.html").read_text()
        assert ("LEAK" in text) == bool(shared)
        assert ("No patient has patches both in training and in test" in text) != bool(shared)
        assert told is None or text.index(told) < text.index("<h1>")


def test_the_papers_figures_stand_beside_the_published_counts_of_each_scan_alone(tmp_path, monkeypatch):
    manifest = manifest_of(TESTED)
    write_run(tmp_path, manifest, rows_for(0, manifest))
    assert "paper total" in render_table(read_run(tmp_path).results)
    monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", (TESTED[1], TESTED[0], *TESTED[2:]))  # of the same sum
    run = read_run(tmp_path)
    assert run.rows["cnn"]["paper"] is not None, "as earlier versions wrote it"
    assert "paper" not in render_table(run.results)
    assert "paper" not in FORMATS["latex"](run, analyse(run, draws=50))


def test_names_on_an_axis_are_short_and_told_apart():
    from kimiajax.report.figures import short_labels

    assert short_labels(("a", "x" * 18, "y" * 19)) == ["a", "x" * 18, f"{'y' * 17}…"]
    assert short_labels([f"{'y' * 20}{k}" for k in range(2)]) == [f"{k} {'y' * 17}…" for k in range(2)]
    assert short_labels(["肝", "ثدي", "Колон", "é"]) == ["0", "1", "Колон", "é"]
