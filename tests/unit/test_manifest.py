import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.scan_files import tissue, write_scans

from kimiajax.data.manifest import Manifest, Patch, header_of, read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import prepare_patches, read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.source import PatchSource, sha256_of
from kimiajax.errors import UserError
from kimiajax.text import is_name


@pytest.fixture
def scans(tmp_path, rng):
    test = rng.integers(0, 255, (3, 8, 8), dtype=np.uint8)
    path = write_scans(tmp_path / "scans.h5", [tissue(rng, 16, 24)] * 2, patches=test, targets=np.array([1, 0, 1]))
    with open_scans(path) as source:
        yield source


def test_it_says_where_patches_lie_and_how_they_were_chosen(scans, tmp_path):
    manifest = read_patches(scans, cut_patches(scans, Rules(2, seed=3)), 8).manifest
    manifest.write(tmp_path / "manifest.csv")
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    assert lines[0] == "patch_id,scan,row,col,split,homogeneity,sha256"
    first = manifest.patches[0]
    assert lines[1] == f"train/s0/{first.row}_{first.col},0,{first.row},{first.col},train,0.000000,{first.sha256}"
    digest = sha256_of(scans.read_test_patch(0))
    assert re.fullmatch(rf"test/s1/0,1,,,test,0\.\d{{6}},{digest}", lines[5])
    header = json.loads((tmp_path / "manifest.json").read_text())
    assert (header["patch_size"], header["scans"], header["patches"]) == (8, 2, {"train": 4, "test": 3})
    assert header["rules"]["seed"] == 3
    assert header["source"]["bytes"] == scans.path.stat().st_size
    assert header["csv_sha256"] == manifest.sha256


def test_it_is_read_back_as_it_was_written(scans, tmp_path):
    for manifest in (cut_patches(scans), read_patches(scans, cut_patches(scans), 8).manifest):
        manifest.write(tmp_path / "m.csv")
        again = read_manifest(tmp_path / "m.csv")
        assert again.csv == manifest.csv
        assert again.about == manifest.about
        rounded = [replace(p, homogeneity=p.homogeneity and round(p.homogeneity, 6)) for p in manifest.patches]
        assert list(again.patches) == rounded


def test_the_patches_that_are_left_in_it_are_read_in_its_order(scans):
    manifest = read_patches(scans, cut_patches(scans), 8).manifest
    kept = [manifest.split("train")[k] for k in (4, 1)] + [manifest.split("test")[k] for k in (2, 0)]
    read = read_patches(scans, replace(manifest, patches=tuple(kept)), 8)
    for pixels, patch in zip(read.train, kept):
        np.testing.assert_array_equal(pixels, scans.read(patch.scan, patch.row, patch.col, 8, 8))
    np.testing.assert_array_equal(read.test, [scans.read_test_patch(k) for k in (2, 0)])


def edited(change):
    def edit(path):
        header, lines = json.loads(header_of(path).read_text()), path.read_text().splitlines()
        change(header, lines)
        header_of(path).write_text(json.dumps(header))
        path.write_text("\n".join(lines) + "\n")

    return edit


def field(line, column, value):
    def change(header, lines):
        header["csv_sha256"] = None
        fields = lines[line].split(",")
        fields[column] = value
        lines[line] = ",".join(fields)

    return edited(change)


def unsealed(change):
    return edited(lambda header, lines: (header.update(csv_sha256=None), change(lines)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: header_of(path).unlink(), "manifest.json: No such file"),
        (lambda path: header_of(path).write_text("{"), "is no JSON"),
        (lambda path: header_of(path).write_text("[]"), "is no manifest's header"),
        (edited(lambda header, lines: header.update(format=2)), "reads format 1"),
        (edited(lambda header, lines: lines.pop()), "was edited since manifest.json was written"),
        (unsealed(lambda lines: lines.__setitem__(0, "a,b")), "they must be patch_id, scan"),
        (unsealed(lambda lines: lines.append(lines[-1])), "is there twice"),
        (unsealed(lambda lines: lines.append(lines[1])), "test patches stand before training patches"),
        (unsealed(lambda lines: lines.__delitem__(slice(13, None))), "holds no test patch"),
        (
            unsealed(lambda lines: lines.append("test/s0/9")),
            "line 17: holds 1 fields and the first line 7; write the manifest again",
        ),
        (lambda path: (unsealed(len)(path), path.write_bytes(path.read_text().encode("utf-32"))), "is no UTF-8 text"),
        (field(2, 0, ""), "line 3: has no patch_id"),
        (field(2, 1, "2"), r"line 3: scan is '2'; it must be a number from 0 to 1"),
        (field(2, 1, "nan"), "scan is 'nan'"),
        (field(2, 2, "-8"), "row is '-8'"),
        (field(2, 2, ""), "a row or a column but not both"),
        (field(3, 3, "0"), "is there twice, by name or by place"),
        (field(2, 4, "val"), "split is 'val'"),
        (field(2, 5, "1.5"), "homogeneity is '1.5'"),
        (field(2, 5, "nan"), "homogeneity is 'nan'"),
        (field(2, 6, "abc"), "64 hexadecimal digits"),
    ],
)
def test_a_broken_manifest_is_refused_by_line(scans, tmp_path, fault, message):
    path = tmp_path / "manifest.csv"
    read_patches(scans, cut_patches(scans), 8).manifest.write(path)
    fault(path)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert str(tmp_path) in str(caught.value)


def test_other_pixels_than_the_manifests_are_refused(scans):
    manifest = read_patches(scans, cut_patches(scans), 8).manifest
    patches = list(manifest.patches)
    patches[3] = replace(patches[3], sha256="0" * 64)
    with pytest.raises(UserError, match=rf"{patches[3].patch_id} has other pixels than the manifest says"):
        read_patches(scans, replace(manifest, patches=tuple(patches)), 8)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch("test/s0/0", 0, "test"), "holds no test patch test/s0/0"),  # it is of scan 1
        (Patch("test/s1/9", 1, "test"), "holds no test patch test/s1/9"),
        (Patch("test/s1/a", 1, "test"), "holds no test patch"),
        (Patch("train/s0/a", 0, "train"), "holds no patch train/s0/a"),
        (Patch("train/s0/0_20", 0, "train", 0, 20), "columns 20..28 leave scan0"),
    ],
)
def test_a_patch_of_another_source_is_refused(scans, patch, message):
    with pytest.raises(UserError, match=message):
        PatchSource(scans, [patch])[0]


def test_a_manifest_of_other_scans_is_refused_before_anything_is_read(scans):
    manifest = cut_patches(scans)
    with pytest.raises(UserError, match="has scans 2, and the manifest 3"):
        read_patches(scans, replace(manifest, num_scans=3), 8)
    with pytest.raises(UserError, match="has patches of side 8, and the manifest 9"):
        read_patches(scans, replace(manifest, patch_size=9), 8)


def test_random_access_gives_pixels_scan_and_name(scans):
    manifest = cut_patches(scans)
    patches = PatchSource(scans, manifest.split("test"))
    assert len(patches) == 3
    pixels, scan, patch_id = patches[1]
    np.testing.assert_array_equal(pixels, scans.read_test_patch(1))
    assert (scan, patch_id) == (0, "test/s0/1")


def count_reads(monkeypatch):
    reads = []
    for name in ("read", "read_test_patch"):
        real = getattr(Scans, name)
        monkeypatch.setattr(Scans, name, lambda *a, real=real: (reads.append(a), real(*a))[1])
    return reads


def test_a_second_run_reads_no_scan_and_maps_the_same_pixels(scans, tmp_path, monkeypatch):
    first = prepare_patches(scans, Rules(2), 6, cache=tmp_path / "cache")
    reads = count_reads(monkeypatch)
    again = prepare_patches(scans, Rules(2), 6, cache=tmp_path / "cache")
    assert not reads
    assert isinstance(again.train, np.memmap)
    assert again.manifest.csv == first.manifest.csv
    np.testing.assert_array_equal(again.train, first.train)
    np.testing.assert_array_equal(again.test, first.test)
    plain = prepare_patches(scans, Rules(2), 6)
    assert reads
    np.testing.assert_array_equal(plain.train, first.train)


def test_another_draw_size_or_filter_is_computed_anew_from_the_chosen_patches_only(scans, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    prepare_patches(scans, Rules(2), 6, cache=cache)
    reads = count_reads(monkeypatch)
    draw = prepare_patches(scans, Rules(2, seed=1), 6, cache=cache)
    assert len(reads) == 4 + 3, "the scans were surveyed before"
    small = prepare_patches(scans, Rules(2, seed=1), 4, cache=cache)
    nearest = prepare_patches(scans, Rules(2, seed=1), 4, "nearest", cache=cache)
    assert small.train.shape == (4, 4, 4)
    assert draw.manifest.csv == small.manifest.csv
    assert (nearest.train != small.train).any()


@pytest.mark.filterwarnings("ignore:.*is not what was kept there:UserWarning")
def test_a_damaged_array_or_manifest_in_the_cache_is_computed_again(scans, tmp_path):
    before = np.array(prepare_patches(scans, Rules(2), 6, cache=tmp_path).train)
    for damaged in [*tmp_path.glob("pixels/*/train.npy"), *tmp_path.glob("manifests/*.csv")]:
        damaged.write_bytes(damaged.read_bytes()[:90])
        again = prepare_patches(scans, Rules(2), 6, cache=tmp_path)
        np.testing.assert_array_equal(again.train, before)
        assert len(damaged.read_bytes()) > 90, "it was mended"


def test_reading_that_is_interrupted_leaves_nothing_that_would_be_found(scans, tmp_path):
    def interrupt(items, description, total, unit):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_patches(scans, cut_patches(scans), 6, cache=tmp_path, track=interrupt)
    assert list((tmp_path / "pixels").iterdir()) == []


def test_an_unknown_filter_is_refused(scans):
    with pytest.raises(UserError, match="no filter 'area'; choose from nearest"):
        read_patches(scans, cut_patches(scans), 6, "area")


def test_a_manifest_that_was_not_read_has_no_digest_of_its_pixels(scans):
    manifest = cut_patches(scans)
    assert manifest.pixels_sha256 is None
    full = read_patches(scans, manifest, 8).manifest
    assert full.pixels_sha256 != replace(full, patches=full.patches[::-1]).pixels_sha256
    assert isinstance(full, Manifest)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace(",", ";").replace("0.", "0,").replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", "\t").encode("utf-16"),
        lambda text: "".join(f"{line},\n" for line in text.splitlines()).encode(),
        lambda text: "".join(f"{'' if not k else k - 1},{line}\n" for k, line in enumerate(text.splitlines())).encode(),
    ],
    ids=["mark", "semicolons and commas", "tabs in UTF-16", "an empty column", "an index"],
)
def test_a_manifest_that_a_spreadsheet_or_pandas_wrote_is_the_same(scans, tmp_path, write):
    cut_patches(scans).write(tmp_path / "m.csv")
    unsealed(len)(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes(write((tmp_path / "m.csv").read_text()))
    assert read_manifest(tmp_path / "m.csv").csv == cut_patches(scans).csv


def test_other_data_are_refused_though_the_manifests_pixels_are_in_the_cache(scans, tmp_path, rng):
    manifest = prepare_patches(scans, Rules(2), 6, cache=tmp_path / "cache").manifest
    other = write_scans(
        tmp_path / "other.h5", [tissue(rng, 16, 24)] * 2, patches=tissue(rng, 24, 8).reshape(3, 8, 8), targets=[1, 0, 1]
    )
    with open_scans(other) as source, pytest.raises(UserError, match="has other pixels than the manifest says"):
        read_patches(source, manifest, 6, cache=tmp_path / "cache")
    train = [replace(patch, col=(patch.col + 8) % 24) for patch in manifest.split("train")]
    moved = replace(manifest, patches=(*train, *manifest.split("test")))
    with pytest.raises(UserError, match="has other pixels"):
        read_patches(scans, moved, 6, cache=tmp_path / "cache")


def test_a_file_that_is_replaced_while_it_is_open_keeps_its_identity(tmp_path, rng):
    path = write_scans(tmp_path / "scans.h5", [tissue(rng, 16, 24)])
    later = write_scans(tmp_path / "later.h5", [tissue(rng, 16, 24)])
    with open_scans(path) as source:
        later.replace(path)
        old = prepare_patches(source, Rules(), 8, cache=tmp_path / "cache").train
    with open_scans(path) as source:
        new = prepare_patches(source, Rules(), 8, cache=tmp_path / "cache").train
    assert (old != new).any()


def test_a_closed_file_is_not_read_nor_another_in_its_place(tmp_path, rng):
    path = write_scans(tmp_path / "scans.h5", [tissue(rng, 16, 24)])
    source = open_scans(path)
    source.close()
    with path.open("rb"), pytest.raises(UserError, match="was closed"):
        source.read(0, 0, 0, 4, 24)


def test_a_cache_that_cannot_be_written_costs_no_result(scans, tmp_path):
    (tmp_path / "surveys").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="cannot keep surveys"):
        assert cut_patches(scans, cache=tmp_path).csv == cut_patches(scans).csv


def test_a_header_that_was_edited_is_refused_unless_that_is_meant(scans, tmp_path):
    path = tmp_path / "manifest.csv"
    cut_patches(scans, Rules(2)).write(path)
    header = json.loads(header_of(path).read_text())
    header_of(path).write_text(json.dumps({**header, "synthetic": True}))
    with pytest.raises(UserError, match=r"manifest.json: was edited since it was written; .* set csv_sha256 to null"):
        read_manifest(path)
    header_of(path).write_text(json.dumps({**header, "synthetic": True, "csv_sha256": None}))
    assert read_manifest(path).about["synthetic"] is True


def test_a_manifest_that_finds_no_room_leaves_the_one_before_and_one_that_is_there_needs_none(
    scans, tmp_path, monkeypatch
):
    path = tmp_path / "manifest.csv"
    before, other = (cut_patches(scans, Rules(count)) for count in (2, 3))
    before.write(path)
    real = Path.write_bytes

    def full(self, content):
        if b"csv_sha256" in content:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    before.write(path)
    with pytest.raises(OSError, match="No space left"):
        other.write(path)
    assert read_manifest(path).csv == before.csv


@pytest.mark.parametrize("name", ["a\u202fb", "a\xa0b", "\u65e5\u672c\u3000\u8a9e", "a b", "\u05d0"])
def test_spaces_of_any_kind_are_no_fault_of_a_name(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x85b", "a\u2028b", "\u202eb", "a\x1b[2J", "\ud800", "", "x" * 301])
def test_what_no_line_shows_is_no_name(name):
    assert not is_name(name)
