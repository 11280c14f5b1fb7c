"""HDF5 files that are whole and cannot be read here, or not yet."""

import pytest
from support.scan_files import abandon, write_packed_scans

FILTERS = {32001: "Blosc", 32008: "bitshuffle", 307: "bzip2", 40_000: "an unknown filter"}


def refused_undamaged(refuses, command, path, *words):
    said = refuses(command, path, f"{path}: ", *words)
    assert "damaged" not in said
    assert "fetch" not in said


@pytest.mark.fault("containers")
@pytest.mark.parametrize("command", ["table", "data explain", "predict"])
@pytest.mark.parametrize("number", FILTERS)
def test_a_filter_that_is_not_installed_is_named(file, refuses, command, number):
    write_packed_scans(file, number)
    remedy = "set HDF5_PLUGIN_PATH" if number == 40_000 else "pip install hdf5plugin"
    refused_undamaged(refuses, command, file, f"{FILTERS[number]} (HDF5's filter {number})", remedy, "h5repack")


@pytest.mark.fault("containers")
@pytest.mark.parametrize("command", ["table", "data explain"])
@pytest.mark.parametrize("in_swmr_mode", [False, True])
def test_a_file_that_a_writer_left_open_is_not_called_damaged(file, refuses, command, in_swmr_mode):
    abandon(file, in_swmr_mode=in_swmr_mode)
    refused_undamaged(refuses, command, file, "is marked as open for writing", "`h5clear -s copy-of-")


@pytest.mark.fault("containers")
def test_a_missing_check_of_filters_is_caught(file, refuses, monkeypatch):
    monkeypatch.setattr("kimiajax.data.sources.scan_file.check_filters", lambda *arguments: None)
    write_packed_scans(file, 32001)
    with pytest.raises(AssertionError, match="damaged"):
        refused_undamaged(refuses, "data explain", file)
