"""Each check of an audit fails on a planted fault, and passes without it."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image, ImageFilter
from support.scan_files import tissue, write_scans

from kimiajax import paper
from kimiajax.cli.main import main
from kimiajax.data.audit.audit import TRUSTED, record_of, run_audit
from kimiajax.data.audit.checks import FAILED, NOT_APPLICABLE, NOTE, PASSED, check_exact
from kimiajax.data.audit.copy_detection import CopyFinder
from kimiajax.data.audit.near_duplicates import THUMBNAIL
from kimiajax.data.export import export_patches
from kimiajax.data.manifest import Manifest, Patch
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import cut_patches
from kimiajax.data.resize import resize
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.errors import UserError

SIZE = 80


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "scans.h5"
    write_synthetic_scans(path, num_scans=4, patch_size=SIZE, grid=(5, 5), test_patches=(3, 4), seed=9)
    return path


@pytest.fixture
def scans(sound, tmp_path):
    return shutil.copy(sound, tmp_path / "scans.h5")


def verdicts(path, **options):
    audit = run_audit(path, **options)
    return audit, {check.name: check.verdict for check in audit.checks}


def test_sound_data_pass_and_every_check_says_so(sound):
    audit, by_name = verdicts(sound)
    assert audit.failed == []
    notes = {"official digest", "training patches"}
    assert {name for name, verdict in by_name.items() if verdict == NOTE} == notes
    assert {verdict for name, verdict in by_name.items() if name not in notes} == {PASSED}
    assert len(by_name) == 16
    assert audit.verdict == TRUSTED


def first_of(file, scan):
    return int(np.flatnonzero(file["test_data/targets"][...] == scan)[0])


def copy_a_test_patch(row, col):
    def plant(file, path):
        file["scan2/data"][row : row + SIZE, col : col + SIZE] = file["test_data/patches"][1]

    return plant


def copy_a_corner(file, path):
    file["scan2/data"][160:200, 120:170] = file["test_data/patches"][1][40:80, 10:60]


def refill(file, path):
    """The content of the test patch back at its place: what was never whitened."""
    k = first_of(file, 1)
    patch = file["test_data/patches"][k]
    for row, col in places_of(path, 1):
        around = file["scan1/data"][row - 1, col : col + SIZE] if row else None
        if around is not None and np.corrcoef(np.diff(around.astype(int)), np.diff(patch[0].astype(int)))[0, 1] > 0.4:
            file["scan1/data"][row : row + SIZE, col : col + SIZE] = patch
            return
    raise AssertionError("the place of the patch was not found")


def places_of(path, scan):
    with h5py.File(path) as file:
        white = file[f"scan{scan}/data"][...] == 255
    windows = np.lib.stride_tricks.sliding_window_view(white, (SIZE, SIZE))[:, :]
    return [tuple(place) for place in np.argwhere(windows.all(axis=(2, 3))).tolist()]


def fill_with_other_tissue(file, path):
    row, col = places_of(path, 3)[0]
    file["scan3/data"][row : row + SIZE, col : col + SIZE] = file["scan3/data"][:SIZE, :SIZE][::-1]


def zero_a_block(file, path):
    file["scan0/data"][200:240, 200:240] = 0


def leave_a_chunk_out(file, path):
    content = file["scan0/data"][...]
    del file["scan0/data"]
    file.create_dataset("scan0/data", content.shape, np.uint8, chunks=(100, 100))[:300] = content[:300]


def transpose_a_scan(file, path):
    content = file["scan1/data"][...].T
    del file["scan1/data"]
    file["scan1/data"] = np.ascontiguousarray(content)


def turn_the_test_patches(file, path):
    file["test_data/patches"][...] = np.rot90(file["test_data/patches"][...], 1, axes=(1, 2))


def exchange_two_targets(file, path):
    targets = file["test_data/targets"]
    first, second = first_of(file, 0), first_of(file, 3)
    targets[first], targets[second] = 3, 0


def shift_targets(by):
    def plant(file, path):
        file["test_data/targets"][...] = file["test_data/targets"][...] + by

    return plant


def turn_targets_round(file, path):
    file["test_data/targets"][...] = (file["test_data/targets"][...] + 1) % 4


def repeat_a_test_patch(file, path):
    file["test_data/patches"][first_of(file, 1)] = file["test_data/patches"][first_of(file, 0)]


def blank_a_test_patch(file, path):
    file["test_data/patches"][2] = 97


def zero_half_a_test_patch(file, path):
    file["test_data/patches"][2, SIZE // 2 :] = 0


def near_copy(change):
    """On the grid, where a training patch lies, in other pixels: no exact search finds it."""

    def plant(file, path):
        with open_scans(path) as source:
            patch = next(p for p in cut_patches(source).split("train") if p.scan == 2)
        picture = Image.fromarray(file["test_data/patches"][1])
        file["scan2/data"][patch.row : patch.row + SIZE, patch.col : patch.col + SIZE] = np.asarray(change(picture))

    return plant


COPIES, EXACT, NEAR = "copies of test patches in the scans", "exact duplicates", "near duplicates"
WHITENED, CONSTANT, TARGETS, DARK = "whitened places", "constant regions", "targets", "dark and flat patches"
# What each fault must fail, and what else it may, as it covers a whitened place or shows in more than one way.
FAULTS = [
    (copy_a_test_patch(160, 160), {COPIES, EXACT, NEAR}, {WHITENED}),
    (copy_a_test_patch(153, 171), {COPIES}, {WHITENED}),
    (copy_a_corner, {COPIES}, {WHITENED}),
    (refill, {COPIES, WHITENED}, {EXACT, NEAR}),
    (fill_with_other_tissue, {WHITENED}, set()),
    (zero_a_block, {CONSTANT}, set()),
    (leave_a_chunk_out, {CONSTANT, DARK, "blank patches"}, {WHITENED}),
    (transpose_a_scan, {"orientation"}, set()),
    (turn_the_test_patches, {"orientation"}, set()),
    (exchange_two_targets, {TARGETS}, set()),
    (turn_targets_round, {TARGETS}, {WHITENED}),
    (shift_targets(24), {"layout"}, set()),
    (repeat_a_test_patch, {EXACT, TARGETS}, set()),
    (blank_a_test_patch, {"blank patches", CONSTANT}, set()),
    (zero_half_a_test_patch, {CONSTANT, DARK}, {TARGETS}),
    (near_copy(lambda picture: picture.filter(ImageFilter.GaussianBlur(0.4))), {NEAR}, {COPIES, WHITENED}),
    (near_copy(lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), {NEAR}, {WHITENED}),
    (near_copy(lambda picture: picture.point(lambda gray: gray * 0.9 + 9)), {NEAR}, {WHITENED}),
]


@pytest.mark.parametrize(("plant", "must", "may"), FAULTS)
def test_a_planted_fault_fails_its_check(scans, plant, must, may):
    shutil.copy(scans, scans.with_name("before.h5"))
    with h5py.File(scans, "r+") as file:
        plant(file, scans.with_name("before.h5"))
    audit, _ = verdicts(scans)
    assert must <= set(audit.failed)
    assert set(audit.failed) <= must | may, [check for check in audit.checks if check.verdict == FAILED]


def test_a_manifest_that_takes_a_whitened_place_for_training_fails_alone(scans, tmp_path):
    """By its own patches: those that the rules leave are sound."""
    with open_scans(scans) as source:
        manifest = cut_patches(source)
    row, col = places_of(scans, 1)[0]
    over = Patch("train/s1/x", 1, "train", max(row - 70, 0), col)  # an eighth of it, at least
    planted = replace(manifest, patches=(over, *manifest.patches))
    audit, _ = verdicts(scans, manifest=planted, cache=tmp_path)
    assert audit.failed == ["training patches over whitened places"]
    with open_scans(scans) as source:
        planted, manifest = (read_patches(source, m, 8).manifest for m in (planted, manifest))
        assert record_of(source.identity, planted, tmp_path)["failed"] == audit.failed
    verdicts(scans, cache=tmp_path)
    with open_scans(scans) as source:
        some = replace(manifest, patches=manifest.patches[::2])
        assert record_of(source.identity, some, tmp_path)["failed"] == [], "one of all patches speaks for some of them"
        assert record_of(source.identity, planted, tmp_path)["failed"] == audit.failed
    shutil.rmtree(tmp_path / "audits")
    verdicts(scans, cache=tmp_path)
    with open_scans(scans) as source:
        assert record_of(source.identity, planted, tmp_path) is None, "the audit of all has not seen this one"


def test_what_is_wrong_with_the_data_marks_patches_that_no_audit_has_seen(scans, tmp_path):
    with h5py.File(scans, "r+") as file:
        zero_a_block(file, scans)
    with open_scans(scans) as source:
        manifest = read_patches(source, cut_patches(source), 8).manifest
    half = replace(manifest, patches=manifest.patches[::2])
    verdicts(scans, manifest=half, cache=tmp_path)
    with open_scans(scans) as source:
        assert record_of(source.identity, manifest, tmp_path)["failed"] == ["constant regions"]


def test_a_manifest_of_other_scans_is_no_fault_of_the_data(scans, tmp_path):
    with open_scans(scans) as source:
        manifest = cut_patches(source)
    with pytest.raises(UserError, match="is it of another source"):
        verdicts(scans, manifest=replace(manifest, num_scans=5), cache=tmp_path)
    with pytest.raises(UserError, match="use --patch-size 80"):
        verdicts(scans, patch_size=40, cache=tmp_path)
    assert not (tmp_path / "audits").exists()


@pytest.mark.parametrize("chunks", [(1, 433), (3, 100)])
def test_copies_are_found_however_flat_the_chunks_are(scans, chunks):
    with h5py.File(scans, "r+") as file:
        copy_a_test_patch(153, 171)(file, scans)
        for number in range(4):
            content = file[f"scan{number}/data"][...]
            del file[f"scan{number}/data"]
            file.create_dataset(f"scan{number}/data", data=content, chunks=tuple(map(min, chunks, content.shape)))
    assert "copies of test patches in the scans" in verdicts(scans)[0].failed


def test_a_scan_without_test_patches_is_named(scans):
    with h5py.File(scans, "r+") as file:
        targets = file["test_data/targets"][...]
        file["test_data/targets"][...] = np.where(targets == 3, 2, targets)
    audit, _ = verdicts(scans)
    assert {"test patches", "targets"} <= set(audit.failed)
    assert any("scan3 have no test patch" in check.detail for check in audit.checks)


def test_a_patch_of_little_noise_is_not_blank(tmp_path, rng):
    """Gray 210, and 211 here and there: its thumbnail has one gray value, it has two."""
    noisy = np.full((200, 200), 210, np.uint8)
    noisy[::10, ::10] = 211
    assert np.ptp(resize(noisy, THUMBNAIL, "box")) == 0 < np.ptp(noisy)
    scan = np.hstack([tissue(rng, 200, 200), noisy])
    path = write_scans(
        tmp_path / "s.h5",
        [scan],
        patches=np.stack([tissue(rng, 200, 200), np.full((200, 200), 9, np.uint8)]),
        targets=np.zeros(2, int),
    )
    check = next(check for check in run_audit(path).checks if check.name == "blank patches")
    assert (check.verdict, check.findings) == (FAILED, ["test/s0/1"])


def test_cells_of_a_few_pixels_that_are_equal_are_no_hole(tmp_path, rng):
    scan = tissue(rng, 81 + 160, 81 + 160)  # the cell in the corner is one pixel
    path = write_scans(tmp_path / "a.h5", [scan], patches=tissue(rng, 80, 80)[None])
    by_name = {check.name: check.verdict for check in run_audit(path).checks}
    assert by_name["constant regions"] == PASSED
    path = write_scans(tmp_path / "b.h5", [np.full((64, 64), 100, np.uint8)], patches=tissue(rng, 16, 16)[None])
    by_name = {check.name: check.verdict for check in run_audit(path).checks}
    assert by_name["constant regions"] == NOT_APPLICABLE


def test_whitened_places_that_overlap_are_noted_and_copies_decide(tmp_path, rng):
    scan, test = tissue(rng, 400, 400), []
    for row, col in ((40, 50), (90, 100), (250, 250)):
        test.append(scan[row : row + 80, col : col + 80].copy())
    for row, col in ((40, 50), (90, 100), (250, 250)):
        scan[row : row + 80, col : col + 80] = 255
    path = write_scans(tmp_path / "a.h5", [scan], patches=np.stack(test), targets=np.zeros(3, int))
    by_name = {check.name: check.verdict for check in run_audit(path).checks}
    assert by_name["whitened places"] == NOTE


def test_thousands_of_equal_patches_are_one_finding():
    patches = [Patch(f"train/s0/{k}", 0, "train", sha256="a" * 64) for k in range(5000)]
    check = check_exact(Manifest((*patches, Patch("test/s0/0", 0, "test", sha256="a" * 64)), 8, 1))
    assert check.verdict == FAILED
    assert check.findings[0]["count"] == 5001
    assert len(json.dumps(check.findings)) < 2000
    assert "train/s0/0 = test/s0/0" in check.detail


def test_a_truncated_file_fails_by_its_layout(scans):
    content = scans.read_bytes()
    scans.write_bytes(content[: len(content) // 2])
    audit, _ = verdicts(scans)
    assert audit.failed == ["layout"]
    assert "a damaged HDF5 file" in audit.checks[0].detail


def test_a_part_that_cannot_be_read_fails_by_name(scans):
    with h5py.File(scans, "r+") as file:
        content = file["scan1/data"][...]
        del file["scan1/data"]
        file.create_dataset("scan1/data", data=content, chunks=(100, 100), compression="gzip")
        at = file["scan1/data"].id.get_chunk_info(5).byte_offset
    with scans.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\xff" * 50)
    audit, _ = verdicts(scans)
    assert audit.failed == ["reading"]
    assert "cannot read /scan1/data" in audit.checks[-1].detail


def test_glass_as_white_as_whitened_places_is_noted_and_copies_decide(scans):
    with h5py.File(scans, "r+") as file:
        for number in range(4):
            scan = file[f"scan{number}/data"][...]
            scan[:, :100] = 255
            file[f"scan{number}/data"][...] = scan
    _, by_name = verdicts(scans)
    assert by_name["whitened places"] == NOTE
    assert by_name["copies of test patches in the scans"] == PASSED


def test_another_file_given_as_the_official_one_fails_and_by_itself_is_a_note(sound, monkeypatch):
    audit, by_name = verdicts(sound, official=True)
    assert audit.failed == ["official digest", "test patches"]
    monkeypatch.setattr(paper, "OFFICIAL_MD5", next(c for c in audit.checks if c.name == "official digest").findings[0])
    with open_scans(sound) as source:
        monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", tuple(np.bincount(source.targets).tolist()))
    audit, by_name = verdicts(sound, official=True)
    assert audit.failed == []
    assert by_name["official digest"] == by_name["test patches"] == PASSED


def test_the_published_counts_add_up():
    assert sum(paper.TEST_PATCHES_PER_SCAN) == paper.TEST_PATCHES
    assert len(paper.TEST_PATCHES_PER_SCAN) == paper.NUM_SCANS


@pytest.fixture
def folder(sound, tmp_path):
    with open_scans(sound) as source:
        export_patches(source, cut_patches(source), tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_of_images_is_audited_by_what_applies(folder):
    audit, by_name = verdicts(folder)
    assert audit.failed == []
    assert by_name["near duplicates"] == by_name["exact duplicates"] == PASSED
    assert "orientation" not in by_name
    train, test = next((folder / "train/s1").iterdir()), next((folder / "test/s1").iterdir())
    shutil.copy(test, train)
    assert verdicts(folder)[0].failed == ["exact duplicates", "near duplicates"]
    Image.open(test).save(train.with_suffix(".jpg"), quality=80)
    train.unlink()
    assert verdicts(folder)[0].failed == ["near duplicates"]


def test_the_command_ends_in_a_table_a_record_and_a_status_and_marks_later_results(scans, tmp_path, capsys):
    cache, out = ["--cache", str(tmp_path / "cache")], tmp_path / "out"
    audit = ["data", "audit", "--scans", str(scans), *cache, "--out", str(out)]
    table = ["table", "quick", "--scans", str(scans), *cache, "--out", str(tmp_path / "run"), "--rows", "cnn"]
    table += ["--epochs", "0", "--patches-per-scan", "2", "--image-size", "32"]

    def marked(*flags):
        assert main([*table, *flags]) == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        return results["data"]["audit"], "AUDIT FAILED" in capsys.readouterr().out

    assert marked() == (None, False)
    assert main([*audit, "--patch-size", str(SIZE)]) == 0
    assert "PASSED: no check failed." in capsys.readouterr().out
    record = json.loads((out / "audit.json").read_text())
    assert (record["verdict"], record["failed"], len(record["checks"])) == ("PASSED", [], 16)
    summary, failed = marked()
    assert (summary["verdict"], failed) == ("PASSED", False)

    with h5py.File(scans, "r+") as file:
        zero_a_block(file, scans)
    assert marked("--fresh") == (None, False), "the file has changed since its audit"
    assert main(audit) == 3
    assert "FAILED: constant regions" in capsys.readouterr().out
    summary, failed = marked()
    assert (summary["failed"], failed) == (["constant regions"], True)


def test_labels_that_are_all_wrong_fail_in_a_file_of_two_scans(tmp_path):
    path = tmp_path / "two.h5"
    write_synthetic_scans(path, num_scans=2, patch_size=SIZE, grid=(5, 5), test_patches=(3, 3), seed=9)
    assert verdicts(path)[1][TARGETS] == PASSED
    with h5py.File(path, "r+") as file:
        file["test_data/targets"][...] = 1 - file["test_data/targets"][...]
    assert verdicts(path)[0].failed == [TARGETS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data"], "choose from audit, explain, export"),
        (["data", "audit"], "data audit needs --scans"),
        (["data", "audit", "--scans", "nowhere.h5"], "nowhere.h5: no such file"),
        (["data", "explain", "--scans", "nowhere.h5"], "nowhere.h5: no such file"),
        (["data", "export", "--scans", "nowhere.h5"], "needs --out"),
    ],
)
def test_bad_input_is_one_line_and_a_status(capsys, arguments, message):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_counts_are_explained_and_only_kimia_path24s_beside_the_published_ones(sound, capsys, monkeypatch):
    assert main(["data", "explain", "--scans", str(sound)]) == 0
    told = capsys.readouterr().out
    with open_scans(sound) as source:
        count = len(cut_patches(source).split("train"))
    row = next(line for line in told.splitlines() if line.strip().startswith("220+"))
    assert row.split()[4] == str(count), "the full grid at 0.99"
    published = ("27,055", "23,916", "22,591", "nearest here")
    assert "4 scans, other than Kimia Path24's" in told
    assert not any(text in told for text in published)
    with open_scans(sound) as source:
        patches = source.test_patches()
    counts = tuple(sum(patch.scan == scan for patch in patches) for scan in range(4))
    monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", counts)
    assert main(["data", "explain", "--scans", str(sound)]) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in published)
    assert "other than Kimia" not in told


def test_pixels_that_are_equal_by_chance_are_no_copy_and_blocks_that_are_equal_make_one(scans):
    """Where a key leads, half of the pixels are the same but nowhere a whole block; and then one in ten blocks."""
    rng = np.random.default_rng(0)
    with h5py.File(scans) as file:
        patch = file["test_data/patches"][1]
    for part, expected in ((rng.random((SIZE, SIZE)) < 0.5, 0.0), (np.arange(SIZE)[:, None] < SIZE // 10, 0.1)):
        with h5py.File(scans, "r+") as file:
            there = file["scan2/data"][100 : 100 + SIZE, 100 : 100 + SIZE]
            file["scan2/data"][100 : 100 + SIZE, 100 : 100 + SIZE] = np.where(part, patch, 255 - there // 2)
        with open_scans(scans) as source:
            finder = CopyFinder(source.read_test_patch, len(source.targets))
            assert finder._compare(source, 1, 2, 100, 100).share == expected
