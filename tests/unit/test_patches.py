import io

import h5py
import numpy as np
import pytest
from PIL import Image
from support.scan_files import tissue, write_scans

from kimiajax import paper
from kimiajax.data.manifest import left_out_of
from kimiajax.data.patches import Rules, cut_patches, full_grid, readme_grid, survey
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.survey import WHITE, cell_edges, survey_scan
from kimiajax.errors import UserError


def scans_of(tmp_path, *scans, **test_data) -> Scans:
    return Scans(write_scans(tmp_path / "scans.h5", list(scans), **test_data))


def grid(height, width, size=8):
    return [(row * size, col * size) for row, col in full_grid(height // size, width // size)]


def places(manifest, scan=0):
    return {(patch.row, patch.col) for patch in manifest.split("train") if patch.scan == scan}


def test_the_full_grid_holds_every_whole_patch_and_the_readmes_loses_the_last_of_each():
    assert full_grid(3, 2) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert readme_grid(3, 2) == [(0, 0), (1, 0)]  # range(int(25 / 8) - 1) by range(int(17 / 8) - 1)


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
    clear = {(r, c) for r, c in grid(24, 32) if np.mean(scan[r : r + 8, c : c + 8] == WHITE) <= 0.01}
    assert places(cut_patches(scans_of(tmp_path, scan))) == clear


def test_a_few_white_pixels_of_tissue_hide_no_whitened_place(tmp_path, rng):
    scan = tissue(rng, 24, 24)
    scan[4:12, 6:14] = WHITE
    scan[3, 6:9] = scan[5:7, 14] = WHITE
    clear = {(r, c) for r, c in grid(24, 24) if np.mean(scan[r : r + 8, c : c + 8] == WHITE) <= 0.01}
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


def test_the_draw_is_the_seeds_and_a_small_draw_is_part_of_a_large_one(tmp_path, rng):
    scans = scans_of(tmp_path, tissue(rng, 40, 40), tissue(rng, 40, 40))
    small, large, other = (cut_patches(scans, Rules(n, s)) for n, s in ((3, 1), (9, 1), (3, 2)))
    assert cut_patches(scans, Rules(3, 1)) == small
    assert len(places(small)) == 3
    assert places(small) < places(large)
    assert places(small) != places(other)
    assert small.sha256 != other.sha256
    assert places(small, 0) != places(small, 1)


def test_every_place_is_drawn_equally_often(tmp_path, rng):
    """9 places, 3 drawn, 300 seeds: 100 draws a place, standard deviation 8.2."""
    scans = scans_of(tmp_path, tissue(rng, 24, 24))
    surveys = survey(scans, [Rules.background])
    counts = dict.fromkeys(grid(24, 24), 0)
    for seed in range(300):
        for place in places(cut_patches(scans, Rules(3, seed), surveys=surveys)):
            counts[place] += 1
    assert max(abs(count - 100) for count in counts.values()) < 4 * 8.2


def test_a_scan_with_fewer_patches_than_asked_for_gives_what_it_has(tmp_path, rng):
    manifest = cut_patches(scans_of(tmp_path, tissue(rng, 16, 16), tissue(rng, 8, 8)), Rules(3))
    assert manifest.counts("train") == [3, 1]


def test_a_scan_without_tissue_is_refused(tmp_path, rng):
    scans = scans_of(tmp_path, tissue(rng, 16, 16), np.full((16, 16), 240, np.uint8))
    with pytest.raises(UserError, match=r"scan1 has no training patch: of its 4 places of 8 x 8, 0 lie over whitened"):
        cut_patches(scans)


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


PADDING = {
    **{f"gray {gray}": lambda _, gray=gray: gray for gray in (0, 3, 12, 25)},
    "noise up to 3": lambda rng: rng.integers(0, 4, (256, 108)),
    "noise around 25": lambda rng: rng.integers(18, 33, (256, 108)),
}


@pytest.mark.parametrize("compress", [lambda pixels: pixels, jpeg], ids=["as it is", "JPEG"])
@pytest.mark.parametrize("padding", PADDING)
def test_padding_that_a_scanner_left_dark_is_left_out_and_counted(tmp_path, rng, padding, compress):
    scan = np.repeat(np.repeat(tissue(rng, 64, 64), 4, 0), 4, 1)
    scan[:, 148:] = PADDING[padding](rng)  # off the grid of 64
    source = scans_of(tmp_path, compress(scan), patches=tissue(rng, 64, 64)[None])
    source.whitens = False  # as of slides: in a scan file one gray value is a hole, to be refused where it is read
    manifest = cut_patches(source)
    assert places(manifest) == {(row, col) for row in range(0, 256, 64) for col in (0, 64)}
    assert manifest.about["left_out"] == {"dark": [8], "flat": [0]}
    assert left_out_of(manifest.about) == "8 dark (scan0 8)"
    assert len(places(cut_patches(source, Rules(dark="none", flat="none")))) == 16


def test_flat_cells_count_as_background_and_alone_leave_out_no_tissue(tmp_path, rng):
    scan = rng.integers(204, 210, (128, 128), dtype=np.uint8)  # glass below the background's gray value
    scan[:64, :64] = tissue(rng, 64, 64)
    scan[64:, :32] = tissue(rng, 64, 32)
    source = scans_of(tmp_path, scan, patches=tissue(rng, 64, 64)[None])
    manifest = cut_patches(source)
    assert places(manifest) == {(0, 0), (64, 0)}
    assert manifest.about["left_out"] == {"dark": [0], "flat": [2]}
    assert len(places(cut_patches(source, Rules(flat=4)))) == 4


def test_scans_of_kimia_path24_are_cut_by_the_papers_rule_alone_unless_asked(tmp_path, rng, monkeypatch):
    scan = rng.integers(0, 4, (128, 128), dtype=np.uint8)
    scan[:64] = tissue(rng, 64, 128)
    source = scans_of(tmp_path, scan, patches=tissue(rng, 64, 64)[None])
    assert len(places(cut_patches(source))) == 2
    monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", (1,))
    manifest = cut_patches(source)
    assert len(places(manifest)) == 4
    assert manifest.about["rules"]["dark"] == "none"
    assert len(places(cut_patches(source, Rules(dark=40)))) == 2


@pytest.mark.parametrize("rules", [{"dark": -1}, {"dark": 256}, {"flat": 300}, {"darkness": 0.0}, {"darkness": 1.5}])
def test_rules_of_content_out_of_their_range_are_refused(rules):
    with pytest.raises(UserError, match=next(iter(rules))):
        Rules(**rules)


def by_plain_counting(scan, size, level, row, col):
    return np.mean(scan[row : row + size, col : col + size] >= level)


@pytest.mark.parametrize("size", [8, 13, 20])
@pytest.mark.parametrize("chunks", [None, (7, 11), (64, 64)])
def test_a_survey_counts_what_plain_counting_does_however_the_file_is_chunked(tmp_path, rng, size, chunks):
    scan = rng.integers(0, 256, (3 * size + 5, 4 * size + 1), dtype=np.uint8)
    path = write_scans(tmp_path / "scans.h5", [scan], patches=np.full((1, size, size), 9, np.uint8))
    with h5py.File(path, "r+") as file:
        del file["scan0/data"]
        file.create_dataset("scan0/data", data=scan, chunks=chunks and tuple(map(min, chunks, scan.shape)))
    with Scans(path) as scans:
        *_, survey = survey_scan(scans, 0, [100])
    assert survey.grid == (3, 4)
    expected = [[by_plain_counting(scan, size, 100, r * size, c * size) for c in range(4)] for r in range(3)]
    np.testing.assert_allclose(survey.homogeneity(100), expected, rtol=1e-12)
    rows, cols = cell_edges(scan.shape[0], size), cell_edges(scan.shape[1], size)
    cells = [np.split(row, cols[1:-1], axis=1) for row in np.split(scan, rows[1:-1])]
    np.testing.assert_array_equal(survey.least, [[cell.min() for cell in row] for row in cells])
    np.testing.assert_array_equal(survey.greatest, [[cell.max() for cell in row] for row in cells])


def test_a_cell_of_more_than_255_rows_is_counted_whole(tmp_path):
    scan = np.full((2400, 2400), 230, np.uint8)  # cells of 300 x 300: a byte would overflow
    scan[0, 0] = 0
    scans = scans_of(tmp_path, scan, patches=np.full((1, 2400, 2400), 9, np.uint8))
    *_, survey = survey_scan(scans, 0, [220])
    assert survey.counts[220].max() == 300 * 300
    assert survey.homogeneity(220)[0, 0] == 1 - 1 / 2400**2


def whitened_by_looking_everywhere(scan, size):
    """The rule of `find_whitened`, pixel by pixel."""
    white = np.pad(scan == WHITE, 1)
    found = []
    for y in range(scan.shape[0] - size + 1):
        for x in range(scan.shape[1] - size + 1):
            inside = white[y + 1 : y + 1 + size, x + 1 : x + 1 + size]
            across, down = slice(x + 1, x + 1 + size), slice(y + 1, y + 1 + size)
            sides = white[y, across], white[y + size + 1, across], white[down, x], white[down, x + size + 1]
            if inside.all() and sum(side.mean() < 0.5 for side in sides) >= 2:
                found.append([y, x])
    return np.array(found).reshape(-1, 2)


@pytest.mark.parametrize("seed", range(6))
def test_whitened_places_are_those_that_looking_at_every_pixel_finds(tmp_path, seed):
    """Places on and off the grid, touching, overlapping, at the rim; white glass; white specks in the tissue."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(8, 20))
    scan = tissue(rng, *rng.integers(3 * size, 6 * size, 2).tolist())
    scan[rng.random(scan.shape) < 0.01] = WHITE
    if seed % 2:
        scan[: size + 3] = WHITE
        scan[:, : size + 5] = WHITE
    for _ in range(6):
        y, x = (int(rng.integers(0, n - size + 1)) for n in scan.shape)
        scan[y : y + size, x : x + size] = WHITE
    scans = scans_of(tmp_path, scan, patches=np.full((1, size, size), 9, np.uint8))
    *_, survey = survey_scan(scans, 0, [])
    expected = whitened_by_looking_everywhere(scan, size)
    assert len(expected) >= 3
    np.testing.assert_array_equal(survey.whitened[np.lexsort(survey.whitened.T[::-1])], expected)
    shared = np.zeros(survey.grid)
    for (i, j), _ in np.ndenumerate(shared):
        offsets = np.abs(expected - (i * size, j * size))
        shared[i, j] = np.clip(size - offsets, 0, None).prod(axis=1).max() / size**2
    np.testing.assert_allclose(survey.overlap(), shared)


def test_a_survey_is_kept_for_files_that_stay_as_they_are(tmp_path, rng, monkeypatch):
    scans = scans_of(tmp_path, tissue(rng, 24, 24), tissue(rng, 30, 40))
    cache = tmp_path / "cache"
    first = survey(scans, [220], cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(Scans, "read", lambda *_: pytest.fail("a scan was read"))
        again = survey(scans, [220], cache=cache)
    for a, b in zip(first, again):
        assert a.shape == b.shape
        for name, array in a.arrays().items():
            np.testing.assert_array_equal(array, b.arrays()[name])
    (kept,) = (cache / "surveys").iterdir()
    whole = kept.read_bytes()
    for damage in (whole[:100], b"", *(whole[:at] + b"\x5a" * 16 + whole[at + 16 :] for at in range(0, 1500, 20))):
        kept.write_bytes(damage)  # read anew, or the damage does no harm
        np.testing.assert_array_equal(survey(scans, [220], cache=cache)[1].counts[220], first[1].counts[220])
    assert list((cache / "surveys").iterdir()) == [kept]  # anew under its own name, and nothing beside it
    with h5py.File(tmp_path / "other.h5", "w") as file:
        for name in scans._file:
            scans._file.copy(name, file)
    scans.close()
    (tmp_path / "other.h5").replace(scans.path)
    with Scans(scans.path) as replaced:
        reads = []
        monkeypatch.setattr(Scans, "read", lambda *a, real=Scans.read: (reads.append(1), real(*a))[1])
        survey(replaced, [220], cache=cache)
        assert reads, "another file under the same name"


def test_patches_that_are_too_small_to_divide_are_refused(tmp_path, rng):
    scans = scans_of(tmp_path, tissue(rng, 24, 24), patches=np.full((1, 4, 4), 9, np.uint8))
    with pytest.raises(UserError, match="patches of 4 pixels; the least is 8"):
        cut_patches(scans)
