import hashlib
from dataclasses import replace

import numpy as np
import pytest
from conftest import tissue, write_scans

from kimiajax.data.patches import (
    WHITE,
    Scans,
    cut_patches,
    full_grid,
    homogeneity_of,
    largest_corner_rectangle,
    read_pixels,
    readme_grid,
)
from kimiajax.errors import UserError


def scans_of(tmp_path, *scans, **test_data) -> Scans:
    return Scans(write_scans(tmp_path / "scans.h5", list(scans), **test_data))


def places(manifest, scan=0):
    return {(patch.row, patch.col) for patch in manifest.split("train") if patch.scan == scan}


def test_the_full_grid_holds_every_whole_patch_and_the_readmes_loses_the_last_of_each():
    assert full_grid(25, 17, 8) == [(0, 0), (0, 8), (8, 0), (8, 8), (16, 0), (16, 8)]
    assert readme_grid(25, 17, 8) == [(0, 0), (8, 0)]  # range(int(25 / 8) - 1) by range(int(17 / 8) - 1)


def test_homogeneity_is_the_fraction_of_background():
    patch = np.array([[219, 220], [255, 0]], np.uint8)
    assert homogeneity_of(patch, 220) == 0.5


def test_a_patch_at_the_threshold_is_background_and_one_below_it_is_tissue(tmp_path):
    scan = np.full((10, 20), 240, np.uint8)
    scan[0, 0] = 100  # 1 of 100 pixels: homogeneity 0.99
    scan[0, 10:12] = 100  # 2 of 100: 0.98
    test = np.full((1, 10, 10), 100, np.uint8)
    assert places(cut_patches(scans_of(tmp_path, scan, patches=test))) == {(0, 10)}


def test_glass_that_is_not_perfectly_constant_is_background(tmp_path, rng):
    scan = rng.integers(236, 252, (16, 24), dtype=np.uint8)
    scan[:8, :8] = tissue(rng, 8, 8)
    assert places(cut_patches(scans_of(tmp_path, scan))) == {(0, 0)}


@pytest.mark.parametrize(
    "at",
    [
        [(0, 0)],
        [(8, 16)],
        [(3, 9)],
        [(5, 4)],
        [(16, 3)],
        [(16, 24)],  # in the corner of the scan
        [(4, 4), (4, 12)],  # side by side
        [(4, 4), (4, 12), (12, 4), (12, 12)],
        [(2, 3), (7, 6)],  # one over the other
    ],
)
def test_patches_over_whitened_places_are_left_out_on_the_grid_and_off_it(tmp_path, rng, at):
    scan = tissue(rng, 24, 32)
    for row, col in at:
        scan[row : row + 8, col : col + 8] = WHITE
    clear = {(r, c) for r, c in full_grid(24, 32, 8) if np.mean(scan[r : r + 8, c : c + 8] == WHITE) <= 0.01}
    assert places(cut_patches(scans_of(tmp_path, scan))) == clear


def test_a_few_white_pixels_of_tissue_hide_no_whitened_place(tmp_path, rng):
    scan = tissue(rng, 24, 24)
    scan[4:12, 6:14] = WHITE
    scan[3, 6:9] = scan[5:7, 14] = WHITE
    clear = {(r, c) for r, c in full_grid(24, 24, 8) if np.mean(scan[r : r + 8, c : c + 8] == WHITE) <= 0.01}
    assert places(cut_patches(scans_of(tmp_path, scan))) == clear


def test_an_overlap_of_one_per_cent_is_let_be(tmp_path, rng):
    scan = tissue(rng, 40, 40)
    scan[18:38, 18:38] = WHITE  # 2 x 2 pixels of the 20 x 20 patch at the top left: 1 %
    scans = scans_of(tmp_path, scan, patches=np.full((1, 20, 20), 9, np.uint8))
    assert places(cut_patches(scans)) == {(0, 0)}


def test_tissue_beside_glass_as_white_as_a_whitened_place_is_kept(tmp_path, rng):
    scan = np.full((48, 48), WHITE, np.uint8)
    scan[20:44, 20:44] = tissue(rng, 24, 24)  # borders off the grid: corners of patches are white
    found = places(cut_patches(scans_of(tmp_path, scan)))
    assert {(16, 16), (16, 24), (24, 16), (40, 40)} <= found


def test_the_largest_corner_rectangle_is_found():
    white = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1]], bool)
    assert largest_corner_rectangle(white) == (2, 2)
    assert largest_corner_rectangle(np.ones((2, 3), bool)) == (2, 3)
    assert largest_corner_rectangle(np.zeros((2, 3), bool)) == (0, 0)


def test_the_draw_is_the_seeds_and_a_small_draw_is_part_of_a_large_one(tmp_path, rng):
    scans = scans_of(tmp_path, tissue(rng, 40, 40), tissue(rng, 40, 40))
    small, large, other = (cut_patches(scans, patches_per_scan=n, seed=s) for n, s in ((3, 1), (9, 1), (3, 2)))
    assert cut_patches(scans, patches_per_scan=3, seed=1) == small
    assert len(places(small)) == 3
    assert places(small) < places(large)
    assert places(small) != places(other)
    assert small.sha256 != other.sha256
    assert places(small, 0) != places(small, 1)


def test_every_place_is_drawn_equally_often(tmp_path, rng):
    """9 places, 3 drawn, 300 seeds: 100 draws a place, standard deviation 8.2."""
    scans = scans_of(tmp_path, tissue(rng, 24, 24))
    counts = dict.fromkeys(full_grid(24, 24, 8), 0)
    for seed in range(300):
        for place in places(cut_patches(scans, patches_per_scan=3, seed=seed)):
            counts[place] += 1
    assert max(abs(count - 100) for count in counts.values()) < 4 * 8.2


def test_a_scan_with_fewer_patches_than_asked_for_gives_what_it_has(tmp_path, rng):
    manifest = cut_patches(scans_of(tmp_path, tissue(rng, 16, 16), tissue(rng, 8, 8)), patches_per_scan=3)
    assert manifest.counts("train") == [3, 1]


def test_a_scan_without_tissue_is_refused(tmp_path, rng):
    scans = scans_of(tmp_path, tissue(rng, 16, 16), np.full((16, 16), 240, np.uint8))
    with pytest.raises(UserError, match=r"scan1 has no training patch: of its 4 places of 8 x 8, 0 lie over whitened"):
        cut_patches(scans)


def test_another_size_than_the_test_patches_is_refused(tmp_path, rng):
    with pytest.raises(UserError, match="--patch-size 8"):
        cut_patches(scans_of(tmp_path, tissue(rng, 16, 16)), 4)


def test_the_manifest_says_where_patches_lie_and_hashes_to_its_file(tmp_path, rng):
    manifest = cut_patches(scans_of(tmp_path, tissue(rng, 8, 16), targets=np.array([0])))
    assert manifest.csv.splitlines() == [
        "patch_id,scan,row,col,split",
        "train/0/0/0,0,0,0,train",
        "train/0/0/8,0,0,8,train",
        "test/0,0,,,test",
    ]
    assert manifest.sha256 == hashlib.sha256(manifest.csv.encode()).hexdigest()


def test_pixels_are_those_of_the_manifests_patches(tmp_path, rng):
    scan, test = tissue(rng, 16, 16), rng.integers(0, 255, (3, 8, 8), dtype=np.uint8)
    scans = scans_of(tmp_path, scan, patches=test, targets=np.zeros(3, int))
    manifest = cut_patches(scans, patches_per_scan=2, seed=3)
    train = read_pixels(scans, manifest, "train", 8, "box")
    for pixels, patch in zip(train, manifest.split("train")):
        np.testing.assert_array_equal(pixels, scan[patch.row : patch.row + 8, patch.col : patch.col + 8])
    np.testing.assert_array_equal(read_pixels(scans, manifest, "test", 8, "box"), test)


def test_test_patches_are_read_by_their_ids_whatever_is_left_of_the_manifest(tmp_path, rng):
    test = rng.integers(0, 255, (4, 8, 8), dtype=np.uint8)
    scans = scans_of(tmp_path, tissue(rng, 16, 16), patches=test, targets=np.zeros(4, int))
    manifest = cut_patches(scans)
    some = replace(manifest, patches=tuple(p for p in manifest.patches if p.patch_id in ("test/1", "test/3")))
    np.testing.assert_array_equal(read_pixels(scans, some, "test", 8, "box"), test[[1, 3]])
