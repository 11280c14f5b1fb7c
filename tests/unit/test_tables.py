"""CSV files as other programs write them: read alike, or refused by what they are."""

import csv

import pytest

from kimiajax.errors import UserError
from kimiajax.io.tables import read_table

NEEDED = {"patch_id": "add it", "predicted": "add it"}
PLAIN = "patch_id,predicted\na,0\nb,1\n"


def read(tmp_path, content):
    path = tmp_path / "p.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, "predictions", NEEDED, ("scan",))


def separated(mark):
    return PLAIN.replace(",", mark)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (PLAIN, (2, 3)),
        (PLAIN.encode("utf-8-sig"), (2, 3)),
        (PLAIN.encode("utf-16"), (2, 3)),
        (b"\xfe\xff" + separated("\t").encode("utf-16-be"), (2, 3)),
        (separated(";"), (2, 3)),
        (separated("\t"), (2, 3)),
        (separated("|"), (2, 3)),
        (separated(", "), (2, 3)),
        (separated('", "').replace("\n", '"\n"').removesuffix('"').replace("patch_id", '"patch_id', 1), (2, 3)),
        (PLAIN.replace("\n", "\r\n"), (2, 3)),
        (PLAIN.replace("\n", "\r"), (2, 3)),
        ("sep=;\n" + separated(";"), (3, 4)),
        ('"sep=\t"\r\n' + separated("\t"), (3, 4)),
        (",patch_id,predicted\n0,a,0\n1,b,1\n", (2, 3)),
        (";patch_id;predicted\n0;a;0\n1;b;1\n", (2, 3)),
        ("patch_id,predicted,,\na,0,,\nb,1,,\n,,,\n,,,\n", (2, 3)),
        ("patch_id,predicted,\na,0\nb,1,,\n", (2, 3)),
        (" Patch_ID ,PREDICTED\na,0\nb,1\n\n \n", (2, 3)),
        ("\npatch_id;predicted;note, long\n\na;0;x,y\nb;1;,\n", (4, 5)),
        ('patch_id,predicted,note\na,0,"two\nlines"\nb,1,\n', (3, 4)),
    ],
)
def test_a_file_of_any_program_is_read_alike(tmp_path, content, lines):
    table = read(tmp_path, content)
    assert (table.columns["patch_id"], table.columns["predicted"]) == (("a", "b"), ("0", "1"))
    assert table.lines == lines


def test_blanks_in_a_plain_file_are_part_of_its_fields(tmp_path):
    assert read(tmp_path, "patch_id,predicted\n a,0\n").columns["patch_id"] == (" a",)


def test_what_was_adapted_is_told(tmp_path):
    assert read(tmp_path, PLAIN).notes == ()
    assert read(tmp_path, PLAIN.encode("utf-8-sig")).notes == ()
    assert read(tmp_path, separated(";").encode("utf-16")).notes == ("in UTF-16", "separated by semicolons")
    assert read(tmp_path, "sep=:\n" + separated(":")).notes == ("separated by ':'",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"PK\x03\x04\0",
            "is no UTF-8 text but a zip archive, as an .xlsx or .ods .*; save the predictions as CSV in UTF-8",
        ),
        (b"\xd0\xcf\x11\xe0\xa1", "an .xls workbook"),
        (b"PAR1abc", "a Parquet file"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\x93NUMPY\1", "a NumPy file"),
        (PLAIN.encode("utf-16-le"), "UTF-16 or UTF-32 without its mark"),
        (PLAIN.encode("utf-32"), "is no UTF-8 text"),
        (PLAIN.replace("a", "\xe4").encode("latin-1"), "is no UTF-8 text .*; save the predictions as CSV in UTF-8"),
        ('[{"patch_id": "a", "predicted": 0}]', "no column patch_id, since it is JSON; save the predictions as CSV"),
        ('{"patch_id": "a", "predicted": 0}\n', "since it is JSON"),
        ("<html><body>404</body></html>", "since it is a web page"),
        ("Experiment 7\n\npatch_id;predicted\na;0\n", "line 3: names the columns, which the first line must"),
        ("x,y\n1,2\nPatch_id,Predicted\na,0\n", "line 3: names the columns, which the first"),
        ("patch_id,predicted\na,0\npatch_id,predicted\nb,0\n", "line 3: names the columns again; keep the first"),
        ("patch_id,predicted\nPatch_ID,Predicted\na,0\n", "line 2: names the columns again"),
        ("patch_id,predicted,Predicted\na,0,1\n", "has 2 columns predicted; keep one"),
        ("patch_id;predicted;scan; Scan\na;0;1;1\n", "has 2 columns scan; keep one"),
        ("patch_id,predicted\na,0,,1\n", "line 2: holds 4 fields and the first line 2"),
        ("patch_id;predicted\na;0\nb\n", "line 3: holds 1 fields and the first line 2"),
        ("sep=;\npatch_id;predicted\na\n", "line 3: holds 1 fields"),
        (f"patch_id,predicted\na,{'x' * 200_000}\n", r"line 2: is no CSV \(field larger.*is a quote left open\?\)"),
        ('patch_id;predicted\na;0\n"b;1\n', "line 3: is no CSV"),
        ("", "an empty file"),
        (",,\n,,\n", "an empty file"),
        ("patch_id:predicted\na:0\n", r"has no column patch_id \(it has 'patch_id:predicted'\); add it"),
        ("patch_id;scan\na;0\n", r"has no column predicted \(it has 'patch_id', 'scan'\); add it"),
        ("sep=;\n", "an empty file"),
    ],
)
def test_what_is_no_such_file_is_refused_by_what_it_is(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "separator", "value"),
    [
        *[(text, ",", 3) for text in ("3", "3.0", " 3 ", "3.000", "03", "3,0", "3.000000e+00", "0.3e1")],
        *[(text, ";", 3) for text in ("3", "3,0", "3.0", "3,0000", "3,000e0")],
        *[
            (text, ",", None)
            for text in ("3.5", "nan", "", "s3", "-3", "+3", "1_0", "3,000", "inf", "1e5", "1e999", "\u0663")
        ],
        *[(text, ";", None) for text in ("3,5", "3.000", "3,000", "3;", "10000", "9" * 5000, "0x3", "None", "<NA>")],
    ],
)
def test_a_whole_number_is_read_where_it_can_mean_one_thing_only(tmp_path, text, separator, value):
    table = read(tmp_path, separated(separator))
    assert table.whole_number(text, 9999) == value


def test_a_share_is_read_with_either_mark(tmp_path):
    assert {float(read(tmp_path, separated(";")).number(text)) for text in ("0.990", "0,990", "0,99", "9.9e-01")} == {
        0.99
    }


def test_the_separator_is_that_of_the_names_whatever_the_fields_hold(tmp_path):
    table = read(tmp_path, "patch_id;predicted;note\n" + "".join(f"{k};0;a,b,c|d\te\n" for k in range(3)))
    assert (table.separator, table.columns["note"][0]) == (";", "a,b,c|d\te")


def test_a_file_that_is_larger_than_a_field_may_be_leaves_the_limit_as_it_is(tmp_path):
    limit = csv.field_size_limit()
    read(tmp_path, PLAIN + "".join(f"p{k},0\n" for k in range(20_000)))
    assert csv.field_size_limit() == limit
