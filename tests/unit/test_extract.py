import os

import numpy as np
import pytest

from kimiajax.errors import UserError
from kimiajax.features.extract import Extractor, extract_features, extract_taps
from kimiajax.io.cache import let_go
from kimiajax.models.inputs import gray_to_unit_rgb
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.progress import Silent


@pytest.fixture
def network(cnn, rng):
    return cnn.init(rng, 32)


@pytest.fixture
def images(rng):
    return rng.integers(0, 255, (7, 32, 32), dtype=np.uint8)


def test_features_do_not_depend_on_the_batch_and_the_padded_last_one(cnn, network, images):
    one = extract_features(cnn, network, images, batch_size=1)
    assert one.shape == (7, 256)
    np.testing.assert_allclose(extract_features(cnn, network, images, batch_size=4), one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extract_features(cnn, network, images, batch_size=100), one, rtol=1e-5, atol=1e-6)


def test_the_cores_share_a_batch_and_give_what_one_pass_gives(cnn, network, images, monkeypatch):
    monkeypatch.setattr("kimiajax.features.extract.cores", lambda: 3)
    extractor = Extractor(cnn, network, 32, ("block4", "pooled"))
    parts = extractor(images[:6])
    assert [part["pooled"].shape for part in parts] == [(2, 256)] * 3
    uneven = extractor(images)
    assert [part["pooled"].shape for part in uneven] == [(3, 256), (3, 256), (1, 256)]
    assert [len(part["pooled"]) for part in extractor(images[:4])] == [2, 2], "no core has padding alone"
    whole = extract_taps(cnn, network, images, ("block4", "pooled"), batch_size=3).arrays
    for tap in ("block4", "pooled"):
        for given in (parts, uneven):
            together = np.concatenate([np.asarray(part[tap]) for part in given])
            np.testing.assert_allclose(together, whole[tap][: len(together)], rtol=1e-5, atol=1e-6)


def test_dense_blocks_take_the_whole_batch_and_give_what_one_pass_gives(rng, monkeypatch):
    monkeypatch.setattr("kimiajax.features.extract.cores", lambda: 2)
    backbone = BACKBONES["vgg16"]
    variables = backbone.init(rng, 32, backbone.up_to("fc2"))
    images = rng.integers(0, 255, (4, 32, 32), dtype=np.uint8)
    extractor = Extractor(backbone, variables, 32, ("block4", "fc1", "fc2"))
    assert (extractor.shared[-1], extractor.whole) == ("block5", ("fc1", "fc2"))
    parts = extractor(images)
    _, taps, _ = backbone.apply(variables, gray_to_unit_rgb(images))
    assert [set(part) for part in parts] == [{"block4", "fc1", "fc2"}] * 2
    for tap in parts[0]:
        together = np.concatenate([np.asarray(part[tap]) for part in parts])
        np.testing.assert_allclose(together, taps[tap], rtol=1e-4, atol=1e-5)


def test_another_seeds_weights_run_the_same_program(cnn, network, images, rng):
    first, second = (Extractor(cnn, variables, 32, ("pooled",)) for variables in (network, cnn.init(rng, 32)))
    parts = first.parts(images)
    assert first.program(parts) is second.program(parts)
    assert first.program(parts) is not Extractor(cnn, network, 32, ("block4",)).program(parts)


def test_images_as_floats_are_taken_as_they_are(cnn, network, images):
    extractor = Extractor(cnn, network, 32, ("pooled",))
    gray, unit = extractor(images)[0], extractor(np.asarray(gray_to_unit_rgb(images)))[0]
    np.testing.assert_allclose(gray["pooled"], unit["pooled"], rtol=1e-5, atol=1e-6)


def test_one_pass_gives_every_tap(cnn, network, images):
    taps = extract_taps(cnn, network, images, ("block2", "pooled")).arrays
    assert taps["block2"].shape == (7, 4, 4, 64)
    np.testing.assert_array_equal(taps["pooled"], extract_features(cnn, network, images))


def test_a_blocks_mean_and_its_row_are_those_of_its_output(cnn, network, images):
    taps = ("block2.flat", "block2", "block2.mean", "pooled.mean", "pooled.flat", "pooled")
    found = extract_taps(cnn, network, images, taps).arrays
    assert tuple(found) == taps
    np.testing.assert_array_equal(found["block2.flat"], found["block2"].reshape(7, -1))
    np.testing.assert_allclose(found["block2.mean"], found["block2"].mean(axis=(1, 2)), rtol=1e-6)
    for tap in ("pooled.mean", "pooled.flat"):
        np.testing.assert_array_equal(found[tap], found["pooled"])


def test_the_cache_keeps_a_blocks_mean_and_not_its_output_and_one_entry_for_several_names(
    cnn, network, images, tmp_path
):
    first = extract_taps(cnn, network, images, ("block2.mean", "pooled", "pooled.mean"), cache=tmp_path)
    again = extract_taps(cnn, network, images, ("pooled.mean", "block2.mean"), cache=tmp_path)
    assert again.cached
    np.testing.assert_array_equal(again.arrays["block2.mean"], first.arrays["block2.mean"])
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("features/*/*.npy") if path.stem != "images"}
    assert sizes == {"block2.mean": 128 + 7 * 64 * 4, "pooled": 128 + 7 * 256 * 4}


@pytest.mark.parametrize(
    ("tap", "message"), [("block9.mean", "unknown block 'block9.mean'"), ("block2.max", "block2.mean or block2.flat")]
)
def test_a_tap_that_there_is_not_is_refused_with_those_that_there_are(cnn, network, images, tap, message):
    with pytest.raises(UserError, match=message):
        extract_taps(cnn, network, images, (tap,))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_letting_go_of_mapped_memory_changes_no_array(rng, tmp_path, mode):
    expected = rng.integers(0, 255, (64, 512), dtype=np.uint8)
    np.save(tmp_path / "x.npy", expected)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode != "r":
        mapped[3] = expected[3] = 7
    let_go([mapped, mapped[5:], expected])
    np.testing.assert_array_equal(mapped, expected)


def test_a_pass_holds_no_more_mapped_memory_than_it_needs(cnn, network, images, tmp_path, monkeypatch):
    monkeypatch.setattr("kimiajax.features.extract.HELD", 4)
    held = []
    monkeypatch.setattr("kimiajax.features.extract.let_go", lambda arrays: held.append(len(arrays)))
    extract_taps(cnn, network, images, ("block2", "pooled"), batch_size=2, cache=tmp_path)
    assert held == [1, 3, 3], "after the digests, and with both taps after every fourth image"


class Listener(Silent):
    """Counts forward passes."""

    def __init__(self):
        self.passes = 0

    def track(self, items, *args, **kwargs):
        self.passes += 1
        return items


def test_the_cache_gives_the_same_and_computes_once(cnn, network, images, tmp_path):
    listener = Listener()
    computed, found = (
        extract_taps(cnn, network, images, ("block4", "pooled"), cache=tmp_path, progress=listener) for _ in range(2)
    )
    assert (computed.cached, found.cached, listener.passes) == (False, True, 1)
    np.testing.assert_array_equal(
        found.arrays["block4"], extract_taps(cnn, network, images, ("block4",)).arrays["block4"]
    )


def test_other_pixels_other_weights_and_other_taps_are_computed_anew(cnn, network, images, rng, tmp_path):
    extract_features(cnn, network, images, cache=tmp_path)
    listener = Listener()
    changed = images.copy()
    changed[3, 5, 5] ^= 1
    extract_features(cnn, network, changed, cache=tmp_path, progress=listener)
    extract_features(cnn, cnn.init(rng, 32), images, cache=tmp_path, progress=listener)
    extract_taps(cnn, network, images, ("block1", "pooled"), cache=tmp_path, progress=listener)
    assert listener.passes == 3


def test_an_image_that_another_set_had_is_not_computed_again(cnn, network, images, tmp_path):
    class Counter(Silent):
        counts, said = [], []

        def track(self, items, description, total, *args, **kwargs):
            self.counts.append(total)
            return items

        def say(self, text):
            self.said.append(text)

    options = {"taps": ("block4", "pooled"), "batch_size": 2, "cache": tmp_path, "progress": Counter()}
    extract_taps(cnn, network, images[:2], **options)
    extract_taps(cnn, network, images[4:], **options)
    order = [6, 3, 0, 1, 5]
    taken = extract_taps(cnn, network, images[order], **options)
    assert Counter.counts == [2, 3, 1]
    assert taken.cached
    assert "4 of 5 found" in Counter.said[-1]
    for tap in ("block4", "pooled"):
        np.testing.assert_array_equal(
            taken.arrays[tap], extract_taps(cnn, network, images, (tap,), batch_size=2).arrays[tap][order]
        )
    extract_taps(cnn, network, images[[5, 0, 1]], **options)  # whole from others, and kept under its own name
    assert Counter.counts == [2, 3, 1]
    assert extract_taps(cnn, network, images[[5, 0, 1]], **options).cached


def test_each_block_is_kept_by_itself_so_that_other_taps_beside_it_change_nothing(cnn, network, images, tmp_path):
    listener = Listener()
    for taps in (("pooled", "block2"), ("pooled", "block3"), ("block2",), ("block3", "block2", "pooled")):
        found = extract_taps(cnn, network, images, taps, cache=tmp_path, progress=listener)
        assert list(found.arrays) == list(taps)
    assert listener.passes == 2
    plain = extract_taps(cnn, network, images, ("block3", "block2", "pooled"))
    for tap, array in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[tap], array)


def test_a_folder_of_the_cache_that_was_copied_by_hand_is_passed_over(cnn, network, images, tmp_path):
    extract_features(cnn, network, images[:3], cache=tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    folder.rename(folder.with_name(f"{folder.name}-backup"))
    assert not extract_taps(cnn, network, images, ("pooled",), cache=tmp_path).cached


def test_a_batch_of_another_size_which_rounds_otherwise_is_computed_anew(cnn, network, images, tmp_path):
    for batch_size in (2, 4):
        taken = extract_taps(cnn, network, images, ("pooled",), batch_size=batch_size, cache=tmp_path)
        assert not taken.cached


def test_rows_of_a_damaged_array_are_computed_and_not_copied(cnn, network, images, tmp_path):
    extract_features(cnn, network, images[:3], cache=tmp_path)
    (file,) = tmp_path.glob("features/*/pooled.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is computed again"):
        features = extract_features(cnn, network, images, cache=tmp_path)
    np.testing.assert_allclose(features, extract_features(cnn, network, images), rtol=1e-6)


def test_an_interrupted_pass_leaves_nothing_that_would_be_found(cnn, network, images, tmp_path):
    class Interrupt(Silent):
        def track(self, items, *args, **kwargs):
            yield next(iter(items))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(cnn, network, images, cache=tmp_path, batch_size=2, progress=Interrupt())
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_damaged_entry_is_computed_again(cnn, network, images, tmp_path, size):
    before = np.array(extract_features(cnn, network, images, cache=tmp_path))
    (file,) = tmp_path.glob("features/*/pooled.npy")
    os.truncate(file, size)
    with pytest.warns(UserWarning, match="is computed again"):
        taps = extract_taps(cnn, network, images, ("pooled",), cache=tmp_path)
    assert not taps.cached
    np.testing.assert_array_equal(taps.arrays["pooled"], before)


def test_an_unknown_tap_is_refused(cnn, network, images):
    with pytest.raises(UserError, match="unknown block 'fc2' of cnn"):
        extract_taps(cnn, network, images, ("fc2",))


def test_one_bit_that_was_turned_in_the_cache_is_noticed_and_mended(cnn, network, images, tmp_path):
    before = np.array(extract_features(cnn, network, images, cache=tmp_path))
    (file,) = tmp_path.glob("features/*/pooled.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="pooled is not what was kept there and is computed again"):
        taps = extract_taps(cnn, network, images, ("pooled",), cache=tmp_path)
    assert not taps.cached
    np.testing.assert_array_equal(taps.arrays["pooled"], before)
    assert extract_taps(cnn, network, images, ("pooled",), cache=tmp_path).cached
