import subprocess
import sys

import h5py
import numpy as np
import pytest
from support.scan_files import tissue, write_scans

from kimiajax.data.open_scans import open_scans
from kimiajax.errors import UserError


@pytest.fixture
def path(tmp_path, rng):
    return write_scans(tmp_path / "scans.h5", [tissue(rng, 20, 30) for _ in range(11)])


def test_scans_come_in_the_order_of_their_numbers(path):
    # HDF5 lists scan10 before scan2.
    with open_scans(path) as scans, h5py.File(path) as file:
        assert len(scans) == 11
        np.testing.assert_array_equal(scans.read(10, 0, 0, 20, 30), file["scan10/data"][...])
        np.testing.assert_array_equal(scans.read(2, 3, 5, 4, 6), file["scan2/data"][3:7, 5:11])


def test_a_region_outside_the_scan_is_refused(path):
    with open_scans(path) as scans, pytest.raises(UserError, match=r"rows 15..23, columns 0..8 leave scan0"):
        scans.read(0, 15, 0, 8, 8)


def test_a_region_is_all_that_is_read(tmp_path):
    """A scan of 40 gigapixels that occupies no disk: reading a corner of it takes no memory to speak of."""
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("scan0/data", (200_000, 200_000), np.uint8, chunks=(256, 256), fillvalue=255)
        file["test_data/patches"] = np.zeros((1, 8, 8), np.uint8)
        file["test_data/targets"] = [0]
    with open_scans(path) as scans:
        assert scans.shape(0) == (200_000, 200_000)
        assert (scans.read(0, 199_000, 199_000, 1000, 1000) == 255).all()


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("test_data/patches"), "holds no /test_data/patches"),
        (lambda file: file.pop("test_data"), "holds no /test_data/patches"),
        (lambda file: file.pop("test_data/targets"), "holds no /test_data/targets"),
        (lambda file: file.pop("scan4"), "scans 4 are missing of 0..10"),
        (lambda file: [file.pop(f"scan{n}") for n in range(11)], "holds no /scan0"),
        (replace("scan3/data", np.zeros((20, 30), np.uint16)), "/scan3/data holds uint16"),
        (replace("scan3/data", np.zeros((20, 30, 3), np.uint8)), "must have 2 dimensions"),
        (replace("test_data/targets", np.arange(11) + 24), "goes from 24 to 34, but the file holds scans 0..10"),
        (replace("test_data/targets", np.arange(11) - 1), "goes from -1 to 9"),
        (replace("test_data/targets", np.arange(11.0)), "holds float64"),
        (replace("test_data/targets", np.arange(9)), r"has shape \(9,\) for 11 test patches"),
        (replace("test_data/patches", np.zeros((11, 8, 9), np.uint8)), r"must be \[t size size\]"),
    ],
)
def test_a_file_that_breaks_the_layout_is_refused_by_name(path, change, message):
    edit(path, change)
    with pytest.raises(UserError, match=message) as caught:
        open_scans(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 29409000000\n", "Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"", "an empty file"),
        (b"\x80\x04\x95pickled", "pickle"),
        (b"scan,patch\n", "not an HDF5 file"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, content, message):
    path = tmp_path / "Kimia_Path24.h5"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_scans(path)


def test_a_truncated_file_is_named_with_its_size(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"damaged HDF5 file of {len(content) // 2:,} bytes"):
        open_scans(path)


def test_no_such_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_scans(tmp_path / "absent.h5")
    with pytest.raises(UserError, match="must hold one folder with 'train' in its name"):
        open_scans(tmp_path)


def test_a_file_that_another_program_writes_is_not_called_damaged(path):
    code = "import sys, h5py; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another program has it open"):
            open_scans(path)


def test_another_size_than_the_test_patches_is_refused(path):
    with pytest.raises(UserError, match="--patch-size 8"):
        open_scans(path, 4)


def test_a_file_after_a_user_block_is_read(tmp_path, rng):
    """MATLAB puts 512 bytes of its own before the file."""
    content = tissue(rng, 20, 30)
    with h5py.File(tmp_path / "m.h5", "w", userblock_size=512) as file:
        file.create_dataset("scan0/data", data=content, chunks=(8, 8))
        file["test_data/patches"] = np.zeros((1, 8, 8), np.uint8)
        file["test_data/targets"] = [0]
    with open_scans(tmp_path / "m.h5") as scans:
        np.testing.assert_array_equal(scans.read(0, 3, 5, 10, 20), content[3:13, 5:25])
