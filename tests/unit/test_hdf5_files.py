import subprocess
import sys

import h5py
import numpy as np
import pytest
from support.scan_files import abandon, packed, write_packed_scans

from kimiajax.data.open_scans import open_scans
from kimiajax.errors import UserError
from weights_convert.keras_h5 import open_arrays

FILTERS = {32001: "Blosc", 32026: "Blosc2", 32008: "bitshuffle", 32015: "Zstandard", 32004: "LZ4", 307: "bzip2"}


@pytest.mark.parametrize("number", FILTERS)
def test_a_filter_that_is_not_installed_is_named_with_both_remedies(tmp_path, number):
    path = write_packed_scans(tmp_path / "my scans.h5", number)
    with pytest.raises(UserError) as caught:
        open_scans(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: /scan0/data is packed with {FILTERS[number]} (HDF5's filter {number}), which HDF5")
    assert "run `pip install hdf5plugin`, or run `h5repack -f GZIP=4 'my scans.h5' 'gzip-my scans.h5'` where" in said
    assert "damaged" not in said
    assert "fetch" not in said


def test_a_filter_that_nobody_registered_is_named_by_its_number(tmp_path):
    path = write_packed_scans(tmp_path / "scans.h5", 39_999)
    with pytest.raises(UserError, match=r"an unknown filter \(HDF5's filter 39999\), .* set HDF5_PLUGIN_PATH, or run"):
        open_scans(path)


def test_an_optional_filter_that_was_left_out_is_not_missed(tmp_path):
    with open_scans(write_packed_scans(tmp_path / "scans.h5", 32001, left_out=True)) as scans:
        assert (scans.read(0, 0, 0, 16, 16) == 100).all()


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Puts a package of filters on the path."""

    def install(code):
        (tmp_path / "hdf5plugin.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("hdf5plugin", None)


def test_filters_of_hdf5plugin_are_used_where_it_is_installed(tmp_path, monkeypatch, plugins):
    path = write_packed_scans(tmp_path / "scans.h5", 32001)
    installed = h5py.h5z.filter_avail
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: "hdf5plugin" in sys.modules or installed(number))
    with pytest.raises(UserError, match="which HDF5 lacks here"):
        open_scans(path)
    plugins("")
    open_scans(path).close()


@pytest.mark.parametrize("code", ["raise ImportError", "raise OSError"])
def test_a_broken_hdf5plugin_is_as_none(tmp_path, plugins, code):
    plugins(code)
    with pytest.raises(UserError, match="which HDF5 lacks here"):
        open_scans(write_packed_scans(tmp_path / "scans.h5", 32001))


def test_hdf5plugin_is_not_loaded_for_files_that_need_none_of_it(tmp_path, plugins):
    plugins("raise SystemExit")
    open_scans(write_packed_scans(tmp_path / "scans.h5", h5py.h5z.FILTER_SHUFFLE)).close()


def test_a_weight_file_with_a_filter_that_is_not_installed_is_refused_in_the_same_words(tmp_path):
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        packed(file, "conv1/conv1/kernel:0", np.zeros((3, 3, 1, 8), np.float32), 32015)
    expected = r"weights.h5: /conv1/conv1/kernel:0 is packed with Zstandard \(HDF5's filter 32015\), .*pip install"
    with pytest.raises(UserError, match=expected), open_arrays(path):
        pass


@pytest.mark.parametrize("block", [0, 1024])
@pytest.mark.parametrize("in_swmr_mode", [False, True])
def test_a_file_whose_writer_died_is_told_from_a_damaged_one(tmp_path, in_swmr_mode, block):
    path = abandon(tmp_path / "my scans.h5", in_swmr_mode=in_swmr_mode, block=block)
    with pytest.raises(UserError) as caught:
        open_scans(path)
    how = " in SWMR mode" if in_swmr_mode else ""
    assert str(caught.value).startswith(f"{path}: is marked as open for writing{how}: a program has it open, or died")
    assert "if there is none, make a copy, run `h5clear -s 'copy-of-my scans.h5'`, and check" in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_so_is_a_file_that_a_program_has_open_in_swmr_mode(tmp_path):
    path = tmp_path / "scans.h5"
    code = (
        "import sys, h5py; f = h5py.File(sys.argv[1], 'w', libver='latest'); f.swmr_mode = True; "
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="is marked as open for writing in SWMR mode: a program has it open"):
            open_scans(path)
