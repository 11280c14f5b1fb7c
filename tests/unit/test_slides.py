"""Whole slides: pyramid TIFFs made here, read through OpenSlide."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.slides import SIZE, draw, write_slide

from kimiajax.cli.main import main
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.slides import Slides
from kimiajax.data.sources.source import NotScannedError
from kimiajax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("slides")
    for number in range(3):
        write_slide(root / f"slide{number}.tif", draw(number))
    return root


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
    with open_scans(folder, SIZE) as slides:
        whole = {(p.row, p.col) for p in cut_patches(slides, Rules(test_patches_per_scan=1)).patches if p.scan == 0}
        real = slides._slides[0].handle

        class Sparse:
            def read_region(self, origin, level, shape):
                image = real.read_region(origin, level, shape)
                if origin == (192, 128):
                    image.putalpha(0)
                return image

            def close(self):
                real.close()

        monkeypatch.setattr(slides, "_slides", [slides._slides[0]._replace(handle=Sparse()), *slides._slides[1:]])
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
            lambda root: (write_slide(root / "a.tif", draw(0)), (root / "notes.txt").write_text("x")),
            {},
            "notes.txt: is no slide",
        ),
    ],
)
def test_slides_that_cannot_serve_are_named(tmp_path, write, arguments, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        open_scans(tmp_path, **{"patch_size": SIZE, **arguments})


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
