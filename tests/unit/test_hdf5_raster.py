import contextlib

import h5py
import numpy as np
import pytest

from kimiajax.data.sources.hdf5_raster import Descriptor, Raster, Region
from kimiajax.errors import UserError

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (32, 40)},
    "gzip": {"chunks": (32, 40), "compression": "gzip"},
    "shuffled": {"chunks": (32, 40), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (32, 40), "compression": "lzf"},
    "checked": {"chunks": (32, 40), "fletcher32": True},
    "checked gzip": {"chunks": (32, 40), "fletcher32": True, "compression": "gzip", "shuffle": True},
    "szip": {"chunks": (32, 40), "compression": "szip"},
    "scaled": {"chunks": (32, 40), "scaleoffset": 0},
    "nbit": {"chunks": (32, 40), "compression": 5},
}


@pytest.fixture
def raster_of():
    """Opens a dataset, and closes it after the test."""
    with contextlib.ExitStack() as opened:

        def open_raster(path, name="data"):
            file = opened.enter_context(h5py.File(path))
            return Raster(file[name], path, Descriptor(path))

        yield open_raster


@pytest.mark.parametrize("userblock", [0, 512])  # MATLAB puts one before the file
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_region_is_what_hdf5_gives(raster_of, tmp_path, rng, layout, userblock):
    content = rng.integers(0, 256, (70, 90), dtype=np.uint8)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=userblock) as file:
        file.create_dataset("data", data=content, **LAYOUTS[layout])
    raster = raster_of(path)
    for row, col, high, wide in [(0, 0, 70, 90), (5, 0, 30, 90), (69, 89, 1, 1), (31, 39, 2, 2), (20, 30, 50, 60)]:
        expected = content[row : row + high, col : col + wide]
        np.testing.assert_array_equal(raster.read((row, col), (high, wide)), expected)


def test_an_array_of_images_is_read_image_by_image(raster_of, tmp_path, rng):
    content = rng.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["whole"] = content
        file.create_dataset("parts", data=content, chunks=(2, 4, 4), compression="gzip")
    for name in ("whole", "parts"):
        np.testing.assert_array_equal(raster_of(tmp_path / "a.h5", name).read((3, 0, 0), (1, 6, 7))[0], content[3])


def test_what_was_never_written_reads_as_the_fill_value_and_is_counted(raster_of, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        holes = file.create_dataset("holes", (64, 80), np.uint8, chunks=(32, 40), fillvalue=7, compression="gzip")
        holes[:32, :40] = 1
        file.create_dataset("nothing", (64, 80), np.uint8, fillvalue=7)
        file["all"] = np.zeros((64, 80), np.uint8)
    holes, nothing, everything = (raster_of(tmp_path / "a.h5", name) for name in ("holes", "nothing", "all"))
    np.testing.assert_array_equal(holes.read((31, 39), (2, 2)), [[1, 7], [7, 7]])
    assert (nothing.read((0, 0), (64, 80)) == 7).all()
    assert [raster.missing_chunks() for raster in (holes, nothing, everything)] == [3, 1, 0]


@pytest.mark.parametrize("chunks", [None, (32, 40)])
def test_tiles_cover_everything_once_and_part_no_chunk(raster_of, tmp_path, chunks, monkeypatch):
    monkeypatch.setattr("kimiajax.data.sources.hdf5_raster.TILE", 3000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (70, 90), np.uint8, chunks=chunks)
    seen = np.zeros((70, 90), int)
    tiles = raster_of(tmp_path / "a.h5").tiles()
    for tile in tiles:
        assert isinstance(tile, Region)
        assert tile.height * tile.width <= 3000
        assert chunks is None or (tile.row % 32, tile.col % 40) == (0, 0)
        seen[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] += 1
    assert (seen == 1).all()
    assert len(tiles) > 2


@pytest.mark.parametrize("layout", ["gzip", "contiguous"])
def test_a_damaged_part_is_named_and_the_rest_still_read(raster_of, tmp_path, rng, layout):
    content = rng.integers(0, 256, (64, 80), dtype=np.uint8)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=content, **LAYOUTS[layout])
        dataset = file["data"].id
        end = dataset.get_offset() if layout == "contiguous" else dataset.get_chunk_info(3).byte_offset
    raster = raster_of(path)
    with path.open("r+b") as file:
        if layout == "gzip":
            file.seek(end)
            file.write(b"\xff" * 20)
        else:
            file.truncate(end + 40 * 80)
    np.testing.assert_array_equal(raster.read((0, 0), (20, 80)), content[:20])
    with pytest.raises(UserError, match=r"a.h5: cannot read /data at .*damaged, fetch it again"):
        raster.read((40, 0), (24, 80))


def test_a_chunk_that_does_not_match_its_checksum_is_damage(raster_of, tmp_path, rng):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=rng.integers(0, 256, (64, 80), dtype=np.uint8), **LAYOUTS["checked"])
        place = file["data"].id.get_chunk_info(3).byte_offset
    with path.open("r+b") as file:
        file.seek(place + 7)
        byte = file.read(1)[0]
        file.seek(place + 7)
        file.write(bytes([byte ^ 1]))
    raster = raster_of(path)
    assert raster.read((0, 0), (20, 30)).shape == (20, 30)
    with pytest.raises(UserError, match=r"a.h5: cannot read /data at .*the file is damaged, fetch it again"):
        raster.read((40, 50), (4, 4))
