import numpy as np
import pytest
from support.scan_files import tissue, write_scans

from kimiajax.data.grain_loader import batches
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import cut_patches
from kimiajax.data.resize import resize
from kimiajax.data.sources.source import PatchSource
from kimiajax.errors import UserError


@pytest.fixture
def patches(tmp_path, rng):
    with open_scans(write_scans(tmp_path / "scans.h5", [tissue(rng, 24, 24), tissue(rng, 16, 8)])) as scans:
        yield PatchSource(scans, cut_patches(scans).split("train"))  # 9 and 2


def names(batch_list):
    return [name for batch in batch_list for name in batch["patch_id"].tolist()]


def test_batches_hold_pixels_scans_and_names_in_order(patches):
    first, *rest = batches(patches, 4)
    assert [len(batch["scan"]) for batch in (first, *rest)] == [4, 4, 3]
    np.testing.assert_array_equal(first["pixels"], [patches[k].pixels for k in range(4)])
    assert names([first, *rest]) == [patch.patch_id for patch in patches.patches]
    assert rest[-1]["scan"].tolist() == [0, 1, 1]
    (small,) = batches(patches, 11, image_size=6)
    np.testing.assert_array_equal(small["pixels"][5], resize(patches[5].pixels, 6, "box"))


def test_a_seed_gives_an_order_another_in_each_epoch_and_every_patch_once(patches):
    drawn = names(batches(patches, 11, seed=3, epochs=2))
    assert drawn == names(batches(patches, 11, seed=3, epochs=2))
    assert drawn != names(batches(patches, 11, seed=4, epochs=2))
    first, second = drawn[:11], drawn[11:]
    assert first != second
    assert sorted(first) == sorted(second) == sorted(patch.patch_id for patch in patches.patches)


def test_processes_share_an_epoch_and_together_read_everything_once(patches):
    shards = [names(batches(patches, 2, seed=5, shard=(number, 3))) for number in range(3)]
    assert sorted(map(len, shards)) == [3, 4, 4]
    assert sorted(name for shard in shards for name in shard) == sorted(patch.patch_id for patch in patches.patches)


def test_reading_goes_on_where_it_stopped(patches):
    whole = [batch["patch_id"].tolist() for batch in batches(patches, 3, seed=1, epochs=2)]
    reader = iter(batches(patches, 3, seed=1, epochs=2))
    for _ in range(3):
        next(reader)
    state = reader.get_state()
    resumed = iter(batches(patches, 3, seed=1, epochs=2))
    resumed.set_state(state)
    assert [batch["patch_id"].tolist() for batch in resumed] == whole[3:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: must be 1 or more"),
        ({"epochs": 0}, "epochs 0"),
        ({"seed": -1}, "seed -1"),
        ({"shard": (2, 2)}, "the numbers go from 0 to 1"),
        ({"shard": (-1, 2)}, "the numbers go from 0 to 1"),
        ({"filter": "area"}, "no filter 'area'"),
    ],
)
def test_batches_that_cannot_be_are_refused(patches, options, message):
    with pytest.raises(UserError, match=message):
        batches(patches, **{"batch_size": 2, **options})
