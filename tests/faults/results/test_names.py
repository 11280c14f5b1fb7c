"""Names that a page, a terminal or a paper might obey."""

import base64
import functools
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from support import foreign_sets
from support.slides import draw, write_slide
from support.stored_runs import manifest_of, predictions_of, write_run

from faults.harness import ask, nothing_changes, refused
from faults.results.pages import DRAWN, Page
from faults.results.planting import ROW, reseal, results_of, table, unvouched
from kimiajax import paper
from kimiajax.experiments.inference import file_names
from kimiajax.runs.schema import LABEL


def assert_harmless(page):
    """No script, no address but those of the page and of what it holds, and no event."""
    assert not {"script", "iframe", "object", "embed", "form", "base", "svg", "link"} & {
        tag for tag, *_ in page.elements
    }
    for name, value in page.values:
        assert not name.startswith("on")
        if name in ("src", "href", "action", "formaction", "srcset", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/svg+xml;base64,"))


LINK = "{http://www.w3.org/1999/xlink}href"


def drawings(page):
    """The page's figures, as XML."""
    sources = [image["src"].partition(",")[2] for image in page.images if "svg" in image["src"][:20]]
    return [ElementTree.fromstring(base64.b64decode(source)) for source in sources]


HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "an attribute": '"><img src=x onerror=alert(1)>',
    "an apostrophe": "' onmouseover='alert(1)",
    "a template": "{{ 7*7 }}{% raw %}{# x #}",
    "an address": "javascript:alert(1)",
    "an end": "</style></title></p><!--",
    "entities": "&lt;b&gt;&amp;&#60;i&#62;",
    "a formula": r"$\frac{1}{0$ ^_{x}",
    "markup": "[red]x[/red] :smile: `*a*` |",
}
UNSEEN = {  # what steers a terminal, or turns the reading around -> how it is shown
    "an escape": ("\x1b[31m\x1b]0;x\x07", r"\x1b[31m\x1b]0;x\x07"),
    "a reading turned around": ("a\u202eb\u2066", r"a\u202eb\u2066"),
    "a control of eight bits": ("\x9b31m", r"\x9b31m"),
    "nothing": ("a\x00b", r"a\x00b"),
}


TESTED = (6, 5, 7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A made-up run with a row of each kind, one of which failed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    manifest, rng = manifest_of(TESTED), np.random.default_rng(2)
    names = ("fe_vgg16", "floor_lbp", "nn_vgg16_cosine")
    rows = {name: predictions_of(rng, manifest.labels("test"), 3, 0.6) for name in names}
    audit = {"verdict": "FAILED", "failed": ["x"], "date": "2026-01-01", "kimiajax": "0.1.0"}
    write_run(folder, manifest, {**rows, "tl_vgg16": None}, audit=audit)
    return folder


def say_everywhere(results, text):
    """Puts a text, and behind it where it stands, wherever a stored run holds text; returns what then stands there."""
    said = []

    def say(place):
        said.append(f"{text} {place}")
        return said[-1]

    results["preset"] = say("preset")
    results["notes"] = [say("note")]
    results["environment"][say("fact")] = say("environment")
    results["config"] |= {"scans": say("scans"), say("setting"): say("config")}
    lineage = {
        "source": say("source of weights"),
        "digest": say("digest"),
        "parent": {"source": say("parent"), "digest": say("first")},
    }
    results["weights"] = {say("network"): lineage}
    data = results["data"]
    data |= {"source": say("source"), "kind": say("kind"), "names": [say(f"scan {k}") for k in range(data["scans"])]}
    data["rules"] = {say("rule"): say("its value")}
    data["audit"] |= {"verdict": say("verdict"), "failed": [say("check")], "date": say("date")}
    for picture in results["pictures"]:
        picture["patch_id"] = say(f"sample {picture['scan']}")
    for row in results["rows"]:
        row["weights"] = say(f"weights of {row['name']}")
        if LABEL(text) and row["family"] != "retrieval":  # which are called by their distance, too
            row["approach"] = say(row["name"])
        if row["family"] == "retrieval":
            row["scheme"] = say("distance") if LABEL(text) else row["scheme"]
            row["retrieval"]["recall_at"] = {say("k"): 0.5}
            for picture in row["pictures"]:
                picture |= {"patch_id": say(f"neighbour {picture['rank']}"), "query": text}
        if row["name"] == "fe_vgg16":
            about = {"file": results["pictures"][0]["file"], "scan": 0}
            heat = {"kind": "grad-cam", "layer": say("layer"), "cells": [3, 3], "evidence": False, "predicted": 1}
            row["pictures"] = [
                {**about, "kind": "patch", "patch_id": say("explained")},
                {**about, **heat, "patch_id": say("heat")},
            ]
    return said


def told(plain, folder, text):
    """A run that says a text everywhere, and what it then says."""
    shutil.copytree(plain, folder)
    said = []
    reseal(folder, lambda results: said.extend(say_everywhere(results, text)))
    return said


@functools.cache
def harmless(plain):
    """The elements of a page of the same run that says nothing unusual."""
    folder = plain.parent / "harmless"
    told(plain, folder, "harmless")
    assert ask("report", folder).status == 0
    return Page((folder / "report.html").read_text()).elements


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_run_says_is_text_in_its_report(plain, tmp_path, undrawn, kind):
    said = told(plain, tmp_path / "run", HOSTILE[kind])
    ended = ask("report", tmp_path / "run")
    assert (ended.status, ended.said) == (0, "")
    page = Page((tmp_path / "run/report.html").read_text(encoding="utf-8"))
    assert [words for words in said if not page.says(words)] == []
    assert page.elements == harmless(plain)
    assert_harmless(page)


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "kinds", [("a script", "an address", "an end"), ("an apostrophe", "entities", "a script")], ids="-".join
)
def test_names_of_rows_are_text_in_figures(plain, tmp_path, kinds):
    def change(results):
        for row, kind in zip(results["rows"], kinds):
            row["approach"] = HOSTILE[kind]

    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, change)
    ended = ask("report", folder)
    assert (ended.status, ended.said) == (0, "")
    page = Page((folder / "report.html").read_text())
    assert all(page.pictures(f"Confusion matrix of {HOSTILE[kind]}") for kind in kinds[:2])
    drawn = [element for drawing in drawings(page) for element in drawing.iter()]
    assert len(drawn) > 1000
    assert {element.tag.partition("}")[2] for element in drawn} <= DRAWN
    for element in drawn:
        assert not any(name.startswith("on") for name in element.attrib)
        assert element.get(LINK, "#").startswith(("#", "data:image/png;base64,"))


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "name", ["$x^$", "{{ 7 }}", '"><b>', "`a`", "a\nb", "\x1b[31m", "\u202e", "\udcff", "a" * 99, ""]
)
def test_a_rows_name_that_no_figure_can_show_is_refused(plain, tmp_path, name):
    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, lambda results: results["rows"][0].update(approach=name))
    with nothing_changes(tmp_path):
        refused(ask("report", folder), folder / "results.json", "run it anew")


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", ["a script", "an attribute", "a template", "entities"])
def test_why_a_row_failed_is_text_in_the_report(plain, tmp_path, undrawn, monkeypatch, kind):
    monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", TESTED)  # so that the paper's conclusions are ruled on

    def change(results):
        results["data"]["audit"] = None  # which would be the stronger reason
        next(row for row in results["rows"] if row["failure"])["failure"] = HOSTILE[kind]

    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, change)
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert page.says(f"TL-VGG16 has no accuracy: {HOSTILE[kind]}")
    assert_harmless(page)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", UNSEEN)
def test_what_steers_a_terminal_or_turns_text_around_is_shown_as_its_escape(plain, tmp_path, undrawn, kind):
    text, shown = UNSEEN[kind]
    said = told(plain, tmp_path / "run", text)
    ended = ask("report", tmp_path / "run")
    assert (ended.status, ended.said) == (0, "")
    content = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert [words for words in said if not page.says(words.replace(text, shown))] == []
    assert page.elements == harmless(plain)
    assert text not in content
    assert ask("report", tmp_path / "run", "--format", "csv", "--out", tmp_path / "out").status == 0
    written = [(tmp_path / "out").read_text(encoding="utf-8")]
    written += [ask("report", tmp_path / "run", "--format", format).shown for format in ("csv", "markdown", "latex")]
    assert all(shown in content for content in written[:2])
    for content in written:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_run_says_is_text_in_markdown(plain, tmp_path, kind):
    said = told(plain, tmp_path / "run", HOSTILE[kind] + "\n\n# x")
    ended = ask("report", tmp_path / "run", "--format", "markdown")
    assert ended.status == 0
    page = Page(MarkdownIt("commonmark").enable("table").render(ended.shown))
    tags = ["p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ol", "li"]
    assert {tag for tag, *_ in page.elements} <= set(tags)
    for place in (" check", " preset", " note", " weights of floor_lbp"):
        words = next(words for words in said if words.endswith(place))
        assert page.says(words)


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "text", [r"\input{/etc/passwd}", "a\x1bb", "x\n\\input{/etc/passwd}", "100 % & {$x^2$ ~ #_}", "x\r\\end{tabular}"]
)
def test_what_a_run_says_is_text_in_latex(plain, tmp_path, text):
    told(plain, tmp_path / "run", text)
    ended = ask("report", tmp_path / "run", "--format", "latex")
    assert ended.status == 0
    comments = [line for line in ended.shown.splitlines() if line.startswith("% ")]
    lines = [line for line in ended.shown.splitlines() if not line.startswith("% ")]
    assert any("note" in line for line in comments)
    assert lines[0] == r"\begin{tabular}{lrrr}"
    commands = set(re.findall(r"\\([A-Za-z]+|.)", "\n".join(lines)))
    ours = {"begin", "end", "toprule", "midrule", "bottomrule", "multicolumn", "emph", "eta", "mathrm", "\\"}
    assert commands <= {*ours, *"&%$#_{}", "textbackslash", "textasciicircum", "textasciitilde"}
    assert sum(line.startswith(r"\end{tabular}") for line in lines) == 1
    assert any(line.startswith(r"\multicolumn") and "AUDIT FAILED" in line and "check" in line for line in lines)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", ["markup", "a script"])
def test_names_of_folders_are_text_on_a_terminal(pictured, tmp_path, undrawn, kind):
    text = HOSTILE[kind].replace("/", "") + "\x1b[31m\udcff"
    seen = text.replace("\x1b", r"\x1b").replace("\udcff", r"\udcff")
    folder = shutil.copytree(pictured, tmp_path / text)
    for arguments in (
        ("compare", folder, folder),
        ("score", folder / "predictions/nn_vgg16_cosine.csv", "--truth", folder),
    ):
        ended = ask(*arguments)
        assert ended.status == 0
        assert "\x1b" not in ended.shown
        assert seen in "".join(ended.shown.splitlines())
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert page.says(seen)
    assert_harmless(page)


NAME = "<img src=x onerror=alert(1)> {{ 7*7 }} [red] $x^$ :x:"
STEERING = f"{NAME} \x1b[31m \u202e"
SEEN = NAME + r" \x1b[31m \u202e"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images by scan, with names that a page, a formula or a terminal might obey."""
    root, rng = tmp_path_factory.mktemp("images") / "[red] :x: \x1b[31m", np.random.default_rng(4)
    for split, count in (("train", 3), ("test", 2)):
        for scan in range(2):
            folder = root / split / f"s{scan}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(20 + 100 * scan, 90 + 100 * scan, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{NAME} {number}.png")
    return root


@pytest.mark.fault("markup")
def test_names_of_images_are_text_in_the_report_of_a_real_run(images, tmp_path):
    run = tmp_path / "run"
    ended = table(run, images, rows=[ROW])
    assert ended.status == 0
    assert r"[red] :x: \x1b[31m" in ended.shown
    assert "\x1b" not in ended.shown
    assert ask("report", run).status == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert_harmless(page)
    found = [image["alt"] for image in page.pictures("Training patch")]
    assert found == [f"Training patch train/s{scan}/{NAME} 1 of scan {scan}" for scan in range(2)]
    out = tmp_path / "predicted.csv"
    ended = ask("predict", run / ROW, images, "--split", "test", "--cache", tmp_path / "cache", "--out", out)
    assert ended.status == 0
    assert f"test/s0/{NAME} 0" in " ".join(ended.shown.split())
    scored = ask("score", out, "--truth", run)
    assert scored.status == 0, scored


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A prepared data set whose classes have such names."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(3)
    kinds = {**foreign_sets.COLOUR, "label": foreign_sets.kinds.ClassLabel(names=[f"{STEERING} {k}" for k in range(3)])}
    examples = foreign_sets.colours(rng, count=5)
    foreign_sets.prepare(root, {"train": examples}, features=kinds)
    return root


@pytest.mark.fault("markup")
def test_names_of_classes_are_text_in_the_report_of_a_real_run(labelled, tmp_path):
    run, flags = tmp_path / "run", ("--data-dir", labelled, "--test-patches-per-scan", 2)
    assert table(run, "foreign", *flags, rows=[ROW], source="--dataset").status == 0
    assert results_of(run)["data"]["names"] == [f"{STEERING} {k}" for k in range(3)]
    assert ask("report", run).status == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert_harmless(page)
    assert page.says(", ".join(f"{SEEN} {k}" for k in range(3)))
    Image.new("L", (8, 8), 120).save(tmp_path / "x.png")
    ended = ask("predict", run / ROW, tmp_path / "x.png", "--cache", tmp_path / "cache")
    assert ended.status == 0
    assert not set("\x1b\u202e") & set(ended.shown)
    assert all(word in ended.shown for word in SEEN.split()), ended.shown


@pytest.mark.fault("markup")
def test_names_of_slides_are_text_on_a_terminal(tmp_path):
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "[red]a\x1b[31m.tif", draw(0))
    ended = ask("data", "explain", "--scans", tmp_path / "slides", "--patch-size", 64, "--cache", tmp_path / "cache")
    assert ended.status == 0, ended
    assert r"[red]a\x1b[31m" in ended.shown
    assert "\x1b" not in ended.shown


@pytest.mark.fault("markup")
@pytest.mark.parametrize("name", ["../../../../evil", "x/../../../../evil", "../s1/evil"])
def test_a_patchs_name_never_leads_out_of_a_folder_that_is_written(scans, run, tmp_path, name):
    """Through a manifest by hand, whose patches are cut at their places whatever they are called."""
    for file in ("manifest.csv", "manifest.json"):
        shutil.copy(run / file, tmp_path / file)
    unvouched(lambda lines: [lines[0], f"train/s0/{name}{lines[1][lines[1].index(',') :]}", *lines[2:]])(tmp_path)
    asked = ("data", "export", "--scans", scans, "--manifest", tmp_path / "manifest.csv", "--cache", tmp_path / "cache")
    out = tmp_path / "a" / "b"
    with nothing_changes(tmp_path):
        ended = ask(*asked, "--out", out)
    refused(ended, "cannot be exported: names have to begin with train/s0/")
    assert not out.exists()


@pytest.mark.fault("markup")
def test_names_of_pictures_are_names_of_files():
    ids = [
        "../../evil.png",
        "/etc/passwd",
        "..",
        "a/../b.PNG",
        "A/../b.png",
        "\x1b[31m",
        "<script>",
        "C:\\x",
        "",
        "a" * 999,
    ]
    names = file_names(ids)
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9._-]{0,199}", name)
