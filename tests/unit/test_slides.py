"""Whole slides: pyramid TIFFs made here, read through OpenSlide."""

import json
import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from support.dicom_slides import write_dicom
from support.slide_kinds import READ, assert_read
from support.slides import SIZE, aperio, cut, draw, write_slide, write_tiff

from kimiajax.cli.main import main
from kimiajax.data.inference_inputs import read_inputs
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.slide_folder import contents_of
from kimiajax.data.sources.slides import Slides
from kimiajax.data.sources.source import NotScannedError
from kimiajax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("slides")
    for number in range(3):
        write_slide(root / f"slide{number}.tif", draw(number))
    return root


class Stand:
    """Stands for a slide of which OpenSlide says something else, or which it reads otherwise."""

    def __init__(self, real, change=lambda origin, image: image, **properties):
        self._real, self._change = real, change
        self.properties = {**real.properties, **{f"openslide.bounds-{side}": str(n) for side, n in properties.items()}}

    def __getattr__(self, name):
        return getattr(self._real, name)

    def read_region(self, origin, level, shape):
        return self._change(origin, self._real.read_region(origin, level, shape))


RULES = Rules(patches_per_scan=6, test_patches_per_scan=3)


def test_patches_are_those_of_the_array_that_the_slide_was_made_of(folder):
    with open_scans(folder, SIZE) as slides:
        assert isinstance(slides, Slides)
        assert slides.names == ("slide0", "slide1", "slide2")
        manifest = cut_patches(slides, RULES)
        read = read_patches(slides, manifest, SIZE)
    for pixels, patch in zip([*read.train, *read.test], manifest.patches):
        expected = draw(patch.scan)[patch.row : patch.row + SIZE, patch.col : patch.col + SIZE]
        difference = pixels.astype(int) - expected
        assert np.abs(difference).mean() < 1.5, "JPEG at 95"
        assert np.abs(difference).max() < 24


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (2, 2)])
def test_a_shift_by_a_pixel_would_show(folder, shift):
    """The tolerance above is a checker: planted faults must fail it."""
    with open_scans(folder, SIZE) as slides:
        pixels = slides.read(0, 128, 128, SIZE, SIZE)
    down, right = shift
    moved = draw(0)[128 + down : 128 + down + SIZE, 128 + right : 128 + right + SIZE]
    assert np.abs(pixels.astype(int) - moved).mean() > 1.5


def test_a_slide_is_read_at_the_resolution_asked_for_from_the_level_that_is_nearest(tmp_path):
    """Scanned at 0.25: 0.5 is its second level, and 0.8 the mean over 1.6 x 1.6 of that level's pixels."""
    gray = draw(4, 1024, 1024)
    write_slide(tmp_path / "a.tif", gray, mpp=0.25, levels=3, jpeg=False)
    half = np.asarray(Image.fromarray(gray).reduce(2))
    with open_scans(tmp_path, SIZE) as slides:
        assert slides.shape(0) == (512, 512)
        np.testing.assert_allclose(slides.read(0, 100, 37, SIZE, SIZE), half[100:164, 37:101], atol=1)
    with open_scans(tmp_path, SIZE, mpp=0.8) as slides:
        assert slides.shape(0) == (320, 320)
        expected = Image.fromarray(half).resize(
            (SIZE, SIZE), Image.Resampling.BOX, box=(16, 32, 16 + 102.4, 32 + 102.4)
        )
        np.testing.assert_allclose(slides.read(0, 20, 10, SIZE, SIZE), np.asarray(expected).astype(int), atol=1)


def test_test_places_are_drawn_by_their_own_seed_and_kept_out_of_training(folder):
    with open_scans(folder, SIZE) as slides:

        def draws(**rules):
            manifest = cut_patches(slides, Rules("all", test_patches_per_scan=5, **rules))
            return [[(p.scan, p.row, p.col) for p in manifest.split(split)] for split in ("train", "test")]

        train, test = draws()
        other_train, other_test = draws(seed=1)
        _, third_test = draws(test_seed=1)
    assert not set(train) & set(test)
    assert [len([p for p in test if p[0] == scan]) for scan in range(3)] == [5, 5, 5]
    assert (test, train) == (other_test, other_train)
    assert test != third_test
    assert len({*train, *test}) == len(train) + 15


def test_too_few_places_for_the_test_patches_are_named(folder):
    with open_scans(folder, SIZE) as slides, pytest.raises(UserError, match="use a smaller --test-patches-per-scan"):
        cut_patches(slides, Rules(test_patches_per_scan=56))


def test_a_region_that_cannot_be_read_is_an_error_and_never_white(tmp_path):
    path = write_slide(tmp_path / "a.tif", draw(1))
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\x00" * 200)
    with open_scans(tmp_path, SIZE) as slides:
        with pytest.raises(UserError, match=r"a.tif: rows 128..192, columns 128..192 .* cannot be read"):
            slides.read(0, 128, 128, SIZE, SIZE)
        with pytest.raises(UserError, match="cannot be read"):
            cut_patches(slides, RULES)


def test_what_the_scanner_left_out_is_no_patch(folder, monkeypatch):
    """A transparent region, as formats with sparse levels give it; here by a stand-in for OpenSlide's answer."""

    def change(origin, image):
        if origin == (192, 128):
            image.putalpha(0)
        return image

    with open_scans(folder, SIZE) as slides:
        whole = {(p.row, p.col) for p in cut_patches(slides, Rules(test_patches_per_scan=1)).patches if p.scan == 0}
        first, *others = slides._slides
        monkeypatch.setattr(slides, "_slides", [first._replace(handle=Stand(first.handle, change)), *others])
        left = {(p.row, p.col) for p in cut_patches(slides, Rules(test_patches_per_scan=1)).patches if p.scan == 0}
        assert whole - left == {(128, 192)}
        with pytest.raises(NotScannedError, match="hold no pixels"):
            slides.read(0, 128, 192, SIZE, SIZE)


@pytest.mark.parametrize(
    ("write", "arguments", "message"),
    [
        (lambda root: write_slide(root / "a.tif", draw(0), resolution=False), {}, "how many microns a pixel is"),
        (lambda root: write_slide(root / "a.tif", draw(0), mpp=1.0), {}, "coarser than the 0.5 asked for; use --mpp 1"),
        (lambda root: write_slide(root / "a.tif", draw(0)), {"patch_size": 1000}, "smaller than a patch of 1000"),
        (lambda root: (root / "a.tif").write_bytes(b"version https://git-lfs"), {}, "a Git-LFS pointer"),
        (
            lambda root: (root / "a.svs").write_bytes(b"no slide"),
            {},
            "not a whole slide that OpenSlide reads, or a damaged",
        ),
        (
            lambda root: (write_slide(root / "a.tif", draw(0)), (root / "label.jpg").write_bytes(b"x")),
            {},
            "label.jpg: is no slide",
        ),
        (
            lambda root: (write_slide(root / "a.tif", draw(0)), (root / "a.svs").write_bytes(b"x")),
            {},
            "two slides have one name but for the suffix or folder, a; rename one",
        ),
    ],
)
def test_slides_that_cannot_serve_are_named(tmp_path, write, arguments, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        open_scans(tmp_path, **{"patch_size": SIZE, **arguments})


SOME = ("tiles, per cm", "no resolution, in a CSV file", "OME, nm, 72 dpi", "ImageJ, an escape", "DICOM, flat")


@pytest.mark.parametrize("kind", [READ[name] for name in SOME], ids=SOME)
def test_slides_of_other_kinds_are_read_as_they_were_drawn(kind, tmp_path):
    """Five of the kinds of `tests/faults/data/test_slides.py`."""
    assert_read(kind, tmp_path / "slides")


@pytest.fixture
def mixed(tmp_path):
    """Two good slides among one of no resolution, one cut, one too coarse and one too small; and an annotation."""
    root = tmp_path / "mixed"
    root.mkdir()
    for name in ("b", "e"):
        write_slide(root / f"{name}.tif", draw(0))
    cut(write_slide(root / "a.tif", draw(0)), 0.9)
    write_slide(root / "c.tif", draw(0), resolution=False)
    write_slide(root / "d.tif", draw(0), mpp=1.0)
    write_slide(root / "f.tif", draw(0, 40, 40))
    (root / "b.xml").write_text("<Annotations/>")
    return root


LEFT_OUT = {"a": "is damaged, or not whole", "c": "does not say how", "d": "was scanned at 1", "f": "is 40 x 40 at 0.5"}


def test_the_first_slide_that_cannot_be_read_is_told_with_the_number_of_all(mixed):
    with pytest.raises(
        UserError, match=r"a.tif: is damaged.* 4 of 6 slides cannot be read \(a, c, d, ...\), and --skip"
    ):
        open_scans(mixed, SIZE)


def test_slides_are_left_out_by_name_where_that_is_asked_for(mixed):
    told = []
    with open_scans(mixed, SIZE, skip_unreadable=True, say=told.append) as slides:
        described = slides.describe()
    assert slides.names == ("b", "e")
    assert described["beside"] == {".xml": 1}
    assert list(described["left_out"]) == list(LEFT_OUT)
    assert all(described["left_out"][name].startswith(why) for name, why in LEFT_OUT.items())
    assert told[0] == f"{mixed}: passed over, as they are no slides: 1 .xml"
    assert told[1:] == list(slides.remarks)
    assert told[1].startswith("4 of 6 slides were left out (--skip-unreadable): a is damaged, or not whole")


def test_one_slide_may_remain_and_where_none_does_leaving_out_is_no_remedy(mixed):
    (mixed / "e.tif").unlink()
    with open_scans(mixed, SIZE, skip_unreadable=True) as slides:
        assert slides.names == ("b",)
    next(mixed.glob("b.[!x]*")).unlink()
    with pytest.raises(UserError, match=r"4 of 4 slides cannot be read \(a, c, d, \.\.\.\)$"):
        open_scans(mixed, SIZE, skip_unreadable=True)


def test_all_patches_of_slides_that_a_run_does_not_know_are_read_by_their_slides(tmp_path):
    for name in ("a", "b"):
        write_slide(tmp_path / f"{name}.tif", draw(3, 2 * SIZE, 3 * SIZE))
    known = read_inputs(tmp_path, Rules(test_patches_per_scan=1), 32, patch_size=SIZE, names=["a", "b"])
    assert [part.split for part in known] == ["train", "test"]
    (new,) = read_inputs(tmp_path, Rules(), 32, patch_size=SIZE, names=["c", "d"])
    assert (len(new.ids), new.ids[0], new.ids[-1]) == (12, "a/0_0", f"b/{SIZE}_{2 * SIZE}")
    assert new.scans is new.split is new.manifest is None
    whole = dict(zip(new.ids, new.pixels))
    for part in known:
        for patch_id, pixels in zip(part.ids, part.pixels):
            _, scan, place = patch_id.split("/")
            np.testing.assert_array_equal(pixels, whole[f"{'ab'[int(scan[1:])]}/{place}"])


def test_what_was_left_out_is_said_in_audits_results_and_reports_and_not_taken_for_new_slides(mixed, tmp_path, capsys):
    flags = ["--scans", str(mixed), "--patch-size", str(SIZE), "--skip-unreadable"]
    main(["data", "audit", *flags, "--out", str(tmp_path / "audit")])
    checks = json.loads((tmp_path / "audit" / "audit.json").read_text())["checks"]
    (remark,) = [check["detail"] for check in checks if check["name"] == "opening"]
    assert remark.startswith("4 of 6 slides were left out")
    few = ["--test-patches-per-scan", "3", "--patches-per-scan", "4", "--rows", "floor_histogram", "--image-size", "32"]
    assert main(["table", "quick", *flags, *few, "--out", str(tmp_path / "run")]) == 0
    assert remark in capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert remark in results["notes"]
    assert list(results["data"]["opened"]["left_out"]) == list(LEFT_OUT)
    assert list(read_manifest(tmp_path / "run" / "manifest.csv").about["source"]["left_out"]) == list(LEFT_OUT)
    assert results["data"]["flags"] == f"--scans {mixed} --patch-size {SIZE} --skip-unreadable"
    assert main(["report", str(tmp_path / "run"), "--format", "markdown"]) == 0
    assert "4 of 6 slides were left out" in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    write_slide(tmp_path / "new" / "g.tif", draw(1), resolution=False)
    predicting = ["predict", str(tmp_path / "run" / "floor_histogram"), str(tmp_path / "new")]
    assert main(predicting) == 2
    assert "does not say how many microns a pixel is" in capsys.readouterr().err
    assert main([*predicting, "--slide-mpp", "0.5"]) == 0
    assert "g: " in capsys.readouterr().out


def test_a_stated_resolution_holds_is_recorded_and_names_other_pixels(tmp_path):
    write_slide(tmp_path / "a.tif", draw(0), mpp=0.25)
    write_slide(tmp_path / "b.tif", draw(0), resolution=False)
    (tmp_path.parent / "mpp.csv").write_text("slide,mpp\nb.tif,0.5\n")
    identities = []
    for stated in (0.5, 0.4, "mpp.csv"):
        with open_scans(
            tmp_path, SIZE, slide_mpp=tmp_path.parent / stated if stated == "mpp.csv" else stated
        ) as slides:
            identities.append(slides.identity)
            resolutions = slides.describe()["resolutions"]
            if stated == 0.5:
                assert slides.shape(0) == slides.shape(1) == (448, 512)
                assert resolutions == {
                    "a": {"mpp": 0.5, "from": "--slide-mpp", "file_says": 0.25},
                    "b": {"mpp": 0.5, "from": "--slide-mpp"},
                }
                assert [remark.partition(" (")[2][:40] for remark in slides.remarks] == [
                    "--slide-mpp), as their files say none th",
                    "--slide-mpp) and not what their files sa",
                ]
            if stated == "mpp.csv":
                assert slides.shape(0) == (224, 256)
                assert (resolutions["a"], slides.flags[-8:]) == ({"mpp": 0.25, "from": "tiff"}, "/mpp.csv")
    assert len(set(identities)) == 3


@pytest.mark.parametrize("kind", ["scan file", "images"])
def test_a_resolution_stated_of_what_is_no_slide_is_refused(kind, scans, tmp_path, rng):
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--slide-mpp .*is for whole slides"):
        read_inputs({"scan file": scans, "images": tmp_path}[kind], Rules(), 32, slide_mpp=0.5)


def test_a_slide_by_itself_is_a_source_and_a_folder_of_one_series_is_a_slide(tmp_path):
    svs = write_tiff(tmp_path / "a.svs", draw(0), description=aperio("|MPP = 0.5"))
    write_tiff(tmp_path / "b.svs", draw(1), description=aperio("|MPP = 0.5"))
    with open_scans(svs, SIZE) as slide, open_scans(tmp_path, SIZE) as both:
        assert (slide.names, both.names) == (("a",), ("a", "b"))
        np.testing.assert_array_equal(slide.read(0, 0, 0, SIZE, SIZE), both.read(0, 0, 0, SIZE, SIZE))
    (tmp_path / "series").mkdir()
    write_dicom(tmp_path / "series", draw(0), levels=2)
    train, test = read_inputs(tmp_path / "series", Rules(test_patches_per_scan=3), 32, patch_size=SIZE)
    assert (len(test.ids), set(train.scans)) == (3, {0})
    with open_scans(tmp_path / "series", SIZE) as slides:
        assert slides.names == ("series",)


def test_dicom_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        write_dicom(tmp_path / patient / "slide", draw(0), sub_images=False)
    with open_scans(tmp_path, SIZE) as slides:
        assert slides.names == ("p1/slide", "p2/slide")


def test_a_slide_whose_files_lie_beside_it_is_one_slide(tmp_path):
    (tmp_path / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=m.jpg\nMacroImage=o.jpg\n")
    for name in ("a.jpg", "m.jpg", "o.jpg"):
        (tmp_path / name).write_bytes(b"x")
    contents = contents_of(tmp_path)
    assert (contents.slides, contents.beside, contents.strange) == ([("a", tmp_path / "a.vms", "")], [], [])


BOUNDS = {
    "within": ({"x": 100, "y": 60, "width": 256, "height": 300}, (60, 100, 300, 256)),
    "odd": ({"x": 101, "y": 61, "width": 255, "height": 300}, (61, 101, 300, 255)),
    "beyond": ({"x": 100, "y": 60, "width": 9000, "height": 9000}, (60, 100, 388, 412)),
    "nowhere": ({"x": 5000, "y": 60, "width": 9, "height": 9}, (0, 0, 448, 512)),
    "no numbers": ({"x": "", "y": 60, "width": 9, "height": 9}, (0, 0, 448, 512)),
}


@pytest.mark.parametrize(("bounds", "part"), BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("level", [0, 1])
def test_a_slide_is_read_within_its_bounds(tmp_path, monkeypatch, bounds, part, level):
    """Formats with bounds cannot be written here; what OpenSlide says of them stands in."""
    write_slide(tmp_path / "a.tif", draw(0), jpeg=False)
    real, (top, left, height, width) = openslide.OpenSlide, part
    with monkeypatch.context() as patched:
        patched.setattr(openslide, "OpenSlide", lambda file: Stand(real(file), **bounds))
        slides = open_scans(tmp_path, SIZE, mpp=0.5 * 2**level)
    rows, columns = (
        slice(-(-start // 2**level), (start + side) // 2**level) for start, side in ((top, height), (left, width))
    )
    expected = np.asarray(Image.fromarray(draw(0)).reduce(2**level))[rows, columns]
    with slides:
        assert slides.shape(0) == expected.shape
        np.testing.assert_allclose(slides.read(0, 0, 0, *expected.shape).astype(int), expected, atol=1)


@pytest.mark.parametrize(("alpha", "scanned"), [(0, False), (100, False), (254, True)])
def test_a_pixel_at_the_rim_that_was_not_scanned_leaves_its_patch_out(folder, monkeypatch, alpha, scanned):
    """Where tiles overlap in part OpenSlide gives a little less than full cover, and the pixels are there."""

    def change(origin, image):
        image.putpixel((0, 5), (*image.getpixel((0, 5))[:3], alpha))
        return image

    with open_scans(folder, SIZE) as slides:
        first = slides._slides[0]
        whole = slides.read(0, 128, 192, SIZE, SIZE)
        monkeypatch.setattr(slides, "_slides", [first._replace(handle=Stand(first.handle, change))])
        if scanned:
            np.testing.assert_array_equal(slides.read(0, 128, 192, SIZE, SIZE), whole)
        else:
            with pytest.raises(NotScannedError, match="hold no pixels"):
                slides.read(0, 128, 192, SIZE, SIZE)


def test_white_padding_is_background(tmp_path):
    padded = np.full((448, 1024), 255, np.uint8)
    padded[:, :512] = draw(0)
    write_slide(tmp_path / "a.tif", padded)
    with open_scans(tmp_path, SIZE) as slides:
        assert max(patch.col for patch in cut_patches(slides, Rules("all", test_patches_per_scan=1)).patches) < 512


def test_without_openslide_the_remedy_is_shown(folder):
    code = f"""
import sys
sys.modules["openslide"] = None
from kimiajax.cli.main import main
sys.exit(main(["data", "explain", "--scans", {str(folder)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install "kimiajax[wsi]"' in done.stderr


def test_the_table_runs_on_a_folder_of_slides(folder, tmp_path):
    command = ["table", "quick", "--scans", str(folder), "--patch-size", str(SIZE), "--test-patches-per-scan", "3"]
    command += ["--patches-per-scan", "4", "--image-size", "32", "--rows", "cnn", "floor_mean_sd", "--epochs", "1"]
    assert main([*command, "--conv", "plain", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["data"]["kind"], results["data"]["scans"]) == ("folder of whole slides", 3)
    assert results["data"]["names"] == ["slide0", "slide1", "slide2"]
    assert (results["data"]["train"], results["data"]["test"]) == (12, 9)
    lines = (tmp_path / "predictions" / "cnn.csv").read_text().splitlines()
    assert lines[1].startswith("test/s0/")
    assert main(["data", "audit", "--scans", str(folder), "--patch-size", str(SIZE), "--out", str(tmp_path)]) == 0


def test_slides_in_folders_beside_slides_at_the_top_are_not_passed_over(tmp_path):
    write_slide(tmp_path / "a.tif", draw(0))
    (tmp_path / "p1").mkdir()
    write_slide(tmp_path / "p1" / "b.tif", draw(1))
    with pytest.raises(UserError, match=r"b.tif: is a slide in a folder, and others lie at the top"):
        open_scans(tmp_path, SIZE)
    (tmp_path / "a.tif").unlink()
    with open_scans(tmp_path, SIZE) as inner, open_scans(tmp_path / "p1" / "b.tif", SIZE, slide_mpp="0,5") as alone:
        assert (inner.names, alone.names) == (("b",), ("b",))
