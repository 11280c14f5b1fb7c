"""What classes are called, and of which data the paper's figures are."""

import pytest

from kimiajax import paper
from kimiajax.runs.classes import classes_of, is_kimia, what_they_are
from kimiajax.text import first_of

KIMIA = {"scans": 24, "synthetic": False, "test_per_scan": list(paper.TEST_PATCHES_PER_SCAN), "kind": "scan file"}


@pytest.mark.parametrize(
    ("names", "kind", "word", "called"),
    [
        (["s0", "s1"], "folder of images", "scan", "scans 0, 1"),
        (["scan0", "scan1"], "scan file", "scan", "scans 0, 1"),
        (["0", "1"], "prepared data set", "scan", "scans 0, 1"),
        (["A 1", "B"], "folder of whole slides", "scan", "scans A 1, B"),
        (["tumour", "stroma"], "prepared data set", "class", "classes tumour, stroma"),
        (["s1", "stroma"], "folder of images", "class", "classes s1, stroma"),
        (["only one"], "folder of images", "scan", "scans 0, 1"),
        (None, None, "scan", "scans 0, 1"),
    ],
)
def test_what_somebody_named_is_called_so(names, kind, word, called):
    classes = classes_of({"names": names, "kind": kind, "scans": 2})
    assert (classes.word, classes.called([0, 1])) == (word, called)
    assert classes.numbered(1) == ("1" if called.endswith("0, 1") else f"1 {names[1]}")
    assert classes.call(7) == f"{word} 7"


def test_the_papers_data_are_known_by_the_test_patches_of_each_scan():
    names = [f"scan{k}" for k in range(24)]
    counts = KIMIA["test_per_scan"]
    assert is_kimia({**KIMIA, "names": names})
    assert is_kimia({**KIMIA, "names": [f"s{k}" for k in range(24)], "kind": "folder of images"})
    for other in (
        {"synthetic": True},
        {"test_per_scan": counts[::-1]},
        {"test_per_scan": None},
        {"names": [f"organ {k}" for k in range(24)]},
    ):
        assert not is_kimia({**KIMIA, "names": names, **other})


def test_other_data_are_described_in_one_line():
    named = {"names": [f"organ {k}" for k in range(14)], "kind": "folder of images", "scans": 14, "test": 28}
    assert what_they_are(named) == (
        f"The data are a folder of images of 14 classes: {', '.join(f'organ {k}' for k in range(12))} and 2 more."
    )
    assert what_they_are({**KIMIA, "test": 1324}).startswith(
        "The data are a scan file of 24 scans with 1,324 test patches"
    )
    assert first_of(["a"], 12) == "a"
