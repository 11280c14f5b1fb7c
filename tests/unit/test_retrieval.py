import jax.numpy as jnp
import numpy as np
import pytest

from kimiajax.errors import UserError
from kimiajax.features import retrieval
from kimiajax.features.retrieval import barcodes, nearest, retrieve

# Queries and rows of the gallery that go at once, and how many are compared beyond k: all; parts that do not divide;
# parts that hold fewer than k; and none beyond, so that rounding leaves every query open after the first comparison.
SETTINGS = [(256, 32_768, 22), (4, 23, 2), (3, 3, 22), (9, 50, 0)]


@pytest.fixture
def go_at_once(monkeypatch):
    def choose(queries: int, gallery: int, spare: int) -> None:
        monkeypatch.setattr(retrieval, "AT_ONCE", queries)
        monkeypatch.setattr(retrieval, "GALLERY_AT_ONCE", gallery)
        monkeypatch.setattr(retrieval, "SPARE", spare)

    return choose


def unpacked(words: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.asarray(words).view(np.uint8), axis=1, bitorder="little")


def every_distance(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """As they are defined, in double precision, [q n]."""
    if distance == "hamming":
        return (unpacked(queries)[:, None] != unpacked(gallery)).sum(axis=2).astype(np.float64)
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "euclidean":
        return np.sqrt(((queries[:, None] - gallery) ** 2).sum(axis=2))
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    return 1 - queries @ gallery.T / lengths


def check(found, distances: np.ndarray) -> None:
    """Demands the nearest, the nearest first; those that float32 cannot tell apart may change places."""
    k = found.places.shape[1]
    rounding = 1e-6 * max(1.0, distances.max())
    for expected in (np.sort(distances, axis=1)[:, :k], np.take_along_axis(distances, np.asarray(found.places), 1)):
        np.testing.assert_allclose(found.distances, expected, rtol=1e-6, atol=rounding)
    assert all(len(set(row)) == k for row in np.asarray(found.places).tolist())


def draw(rng: np.random.Generator, count: int, distance: str) -> np.ndarray:
    rows = (rng.standard_normal((count, 40)) * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)
    return np.asarray(barcodes(rows)) if distance == "hamming" else rows


@pytest.mark.parametrize("distance", retrieval.DISTANCES)
def test_neighbours_are_those_of_every_pair_compared_whatever_goes_at_once(rng, go_at_once, distance):
    queries, gallery = draw(rng, 9, distance), draw(rng, 50, distance)
    distances = every_distance(queries, gallery, distance)
    for settings in SETTINGS:
        go_at_once(*settings)
        found = nearest(queries, gallery, 5, distance)
        check(found, distances)
        np.testing.assert_array_equal(found.places, np.argsort(distances, axis=1, kind="stable")[:, :5])
        first = found if settings == SETTINGS[0] else first
        # Another program may add the terms of a sum in another order.
        np.testing.assert_allclose(found.distances, first.distances, rtol=1e-6)


@pytest.mark.parametrize("distance", retrieval.DISTANCES)
def test_of_equal_ones_the_earliest_comes_first_whatever_goes_at_once(rng, go_at_once, distance):
    # Three features again and again, more often than some settings compare at once.
    gallery, queries = draw(rng, 3, distance)[rng.integers(0, 3, 50)], draw(rng, 9, distance)
    ranks = every_distance(queries, gallery, distance).round(9)
    for settings in SETTINGS:
        go_at_once(*settings)
        found = nearest(queries, gallery, 5, distance)
        np.testing.assert_array_equal(found.places, np.argsort(ranks, axis=1, kind="stable")[:, :5])
        assert all(len(set(row)) == 1 for row in np.asarray(found.distances).tolist())


def test_a_search_that_forgets_the_gallerys_lengths_is_seen(rng, monkeypatch):
    queries, gallery = draw(rng, 9, "euclidean"), draw(rng, 50, "euclidean")
    monkeypatch.setattr(retrieval, "SPARE", 0)
    distances = every_distance(queries, gallery, "euclidean")
    check(nearest(queries, gallery, 5), distances)
    monkeypatch.setattr(retrieval, "_squares", lambda rows: jnp.full(len(rows), 1000.0))
    retrieval._search.clear_cache()
    with pytest.raises(AssertionError):
        check(nearest(queries, gallery, 5), distances)
    retrieval._search.clear_cache()


@pytest.mark.parametrize("distance", retrieval.DISTANCES)
def test_each_of_a_gallery_is_its_own_neighbour_at_distance_0(rng, go_at_once, distance):
    gallery = draw(rng, 50, distance)
    for settings in SETTINGS:
        go_at_once(*settings)
        found = nearest(gallery[20:29], gallery, 5, distance)
        np.testing.assert_array_equal(found.places[:, 0], np.arange(20, 29))
        np.testing.assert_array_equal(found.distances[:, 0], 0)


def test_neighbours_are_right_where_the_product_rounds_by_more_than_they_differ(rng, go_at_once):
    go_at_once(256, 32_768, 0)
    gallery = (100_000 + rng.standard_normal((500, 8))).astype(np.float32)
    queries = gallery[:20] + rng.standard_normal((20, 8)).astype(np.float32)
    distances = every_distance(queries, gallery, "euclidean")
    found = nearest(queries, gallery, 5)
    np.testing.assert_array_equal(found.places, np.argsort(distances, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :5], rtol=1e-6)


def test_of_different_features_at_one_distance_the_earliest_comes_first_however_the_product_rounds(rng, go_at_once):
    go_at_once(256, 32_768, 0)
    gallery = (100_000 + rng.choice([-1, 1], (500, 8))).astype(np.float32)
    queries = np.full((20, 8), 100_000, np.float32)
    queries[:, 0] += np.arange(20) / 8  # to each, features at two distances only
    distances = every_distance(queries, gallery, "euclidean")
    found = nearest(queries, gallery, 5)
    np.testing.assert_array_equal(found.places, np.argsort(distances, axis=1, kind="stable")[:, :5])


def test_the_cosine_is_that_of_features_whose_squares_float32_cannot_hold(rng):
    queries, gallery = draw(rng, 9, "cosine"), draw(rng, 50, "cosine")
    expected = nearest(queries, gallery, 5, "cosine")
    for scale in (2.0**-90, 2.0**90):
        found = nearest(queries, gallery * np.float32(scale), 5, "cosine")
        np.testing.assert_array_equal(found.places, expected.places)
        np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("width", [2, 32, 33, 34, 100])
def test_a_barcode_has_one_bit_for_each_rise_and_nothing_beyond(rng, width):
    features = rng.integers(0, 4, (6, width)).astype(np.float32)  # equal ones too: they are no rise
    words = barcodes(features)
    assert words.shape == (6, -(-(width - 1) // 32))
    bits = unpacked(words)
    np.testing.assert_array_equal(bits[:, : width - 1], np.diff(features, axis=1) > 0)
    assert not bits[:, width - 1 :].any()


def test_barcodes_differ_in_as_many_bits_as_a_plain_loop_counts():
    a = np.array([[0, 1, 0, 2, 2], [3, 2, 1, 0, 5]], np.float32)  # rises: yes no yes no, no no no yes
    b = np.array([[1, 0, 5, 4, 9]], np.float32)  # no yes no yes
    found = nearest(barcodes(a), barcodes(b), 1, "hamming")
    np.testing.assert_array_equal(found.distances[:, 0], [4, 1])


def test_a_gallery_in_a_file_is_read_a_part_at_a_time(rng, tmp_path, monkeypatch, go_at_once):
    np.save(tmp_path / "gallery.npy", draw(rng, 50, "euclidean"))
    gallery, queries = np.load(tmp_path / "gallery.npy", mmap_mode="r"), draw(rng, 9, "euclidean")
    expected = nearest(queries, np.array(gallery), 5)
    go_at_once(4, 23, 2)
    seen, entered = [], retrieval._entered

    def watch(rows, distance, name):
        if isinstance(rows, np.memmap):
            seen.append(len(rows))
        return entered(rows, distance, name)

    monkeypatch.setattr(retrieval, "_entered", watch)
    found = nearest(queries, gallery, 5)
    assert seen == [17, 17, 17]
    np.testing.assert_array_equal(found.places, expected.places)


def test_barcodes_of_a_file_are_made_a_part_at_a_time(rng, tmp_path, monkeypatch, go_at_once):
    np.save(tmp_path / "gallery.npy", draw(rng, 50, "euclidean"))
    gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    whole = barcodes(np.array(gallery))
    go_at_once(4, 23, 22)
    sizes, packed = [], retrieval._packed
    monkeypatch.setattr(retrieval, "_packed", lambda rows: (sizes.append(len(rows)), packed(rows))[1])
    np.testing.assert_array_equal(barcodes(gallery), whole)
    assert sizes == [23, 23, 4]


def test_recall_counts_queries_with_a_patch_of_their_scan_among_the_k_nearest():
    neighbours = np.array([[0, 1, 1, 2, 2], [2, 1, 0, 0, 1], [2, 2, 0, 0, 0], [1, 1, 1, 1, 1]])
    places = np.array([[100 * query + rank, 1] for query in range(4) for rank in range(1, 6)], np.float32)
    queries = np.array([[100 * query, 1] for query in range(4)], np.float32)
    found = retrieve(places, neighbours.ravel(), queries, np.array([0, 0, 1, 0]), "euclidean", 5)
    np.testing.assert_array_equal(found.predicted, [0, 2, 2, 1])
    assert found.recall_at == {1: 1 / 4, 3: 2 / 4, 5: 2 / 4}  # of five nobody knows ten


@pytest.mark.parametrize("kind", retrieval.KINDS)
def test_patches_that_resemble_their_scan_are_found_by_each_kind(rng, kind):
    centres = rng.standard_normal((4, 65)).astype(np.float32)
    train, test = np.repeat(np.arange(4), 6), np.repeat(np.arange(4), 2)
    near = lambda scans: centres[scans] + 0.05 * rng.standard_normal((len(scans), 65)).astype(np.float32)  # noqa: E731
    found = retrieve(near(train), train, near(test), test, kind, k=7)
    np.testing.assert_array_equal(found.predicted, test)
    np.testing.assert_array_equal(train[found.places[:, :6]], np.repeat(test[:, None], 6, axis=1))
    assert found.recall_at == {1: 1, 3: 1, 5: 1}
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert found.queries_per_second > 0


def test_the_second_search_is_timed_with_the_barcodes_of_its_queries(rng, monkeypatch):
    made = []
    count = lambda features: (made.append(len(features)), barcodes(features))[1]  # noqa: E731
    monkeypatch.setitem(retrieval.KINDS, "barcode", (count, "hamming"))
    features = draw(rng, 20, "euclidean")
    retrieve(features[:15], np.zeros(15, int), features[15:], np.zeros(5, int), "barcode", k=3)
    assert made == [15, 5, 5]  # the gallery's once


ROWS, WORDS = np.ones((3, 4), np.float32), np.ones((3, 4), np.uint32)


def spoilt(value: float, rows: int = 2) -> np.ndarray:
    return np.concatenate([np.full((rows, 4), value, np.float32), ROWS])


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "distance", "message"),
    [
        (ROWS, ROWS, 4, "euclidean", "4 neighbours of a gallery of 3: choose 1 to 3"),
        (ROWS, ROWS, 0, "euclidean", "choose 1 to 3"),
        (ROWS, np.ones((3, 5), np.float32), 1, "euclidean", "4 wide and the gallery 5; take both from one block"),
        (ROWS, spoilt(np.nan), 1, "euclidean", "2 of the 5 rows of the gallery from place 0 on hold NaN"),
        (spoilt(np.inf), ROWS, 1, "euclidean", "2 of the 5 queries hold NaN"),
        (spoilt(-np.inf), ROWS, 1, "cosine", "2 of the 5 queries hold NaN"),
        (ROWS, spoilt(1e18), 1, "euclidean", "too large to square"),
        (ROWS, spoilt(0), 1, "cosine", "2 of the 5 rows of the gallery from place 0 on are zeros"),
        (spoilt(0, rows=1), ROWS, 1, "cosine", "1 of the 4 queries are zeros.*take the Euclidean distance"),
        (ROWS, ROWS, 1, "manhattan", "no distance 'manhattan'; choose from euclidean, cosine, hamming"),
        (WORDS, ROWS, 1, "hamming", "`barcodes` makes them of features"),
        (ROWS, WORDS, 1, "cosine", '"hamming" is the distance of barcodes, and of them only'),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_remedy(queries, gallery, k, distance, message):
    with pytest.raises(UserError, match=message):
        nearest(queries, gallery, k, distance)


def test_features_that_give_no_barcode_are_refused():
    with pytest.raises(UserError, match="1 of the 4 features hold NaN or infinity"):
        barcodes(spoilt(np.nan, rows=1))
    with pytest.raises(UserError, match="two values at least"):
        barcodes(np.ones((3, 1), np.float32))


def test_an_unknown_kind_of_retrieval_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no kind of retrieval 'wavelet'; choose from euclidean, cosine, barcode"):
        retrieve(ROWS, np.zeros(3, int), ROWS, np.zeros(3, int), "wavelet")
