"""Search: the nearest of many features, or of their barcodes, and how often those are patches of the query's scan."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.checks import labels_of, rows_of, whole
from kimiajax.errors import UserError, check_known
from kimiajax.runtime.precision import products_in
from kimiajax.runtime.shell import DOUBLES, standard_settings
from kimiajax.shapes import Bool, Float, Int, Shaped

AT_ONCE = 256  # queries whose distances to a part of the gallery are held
GALLERY_AT_ONCE, GALLERY_BYTES = 32_768, 2**30  # rows of the gallery that the device holds, and what they may take
SPARE = 22  # compared beyond k, so that rounding seldom leaves open which are nearest
LARGEST = 1e36  # square of a feature's length, so that float32 holds what is computed of it
RECALLS = (1, 3, 5, 10)  # neighbours among which a patch of the query's scan is looked for
BITS = 32  # in a word of a barcode


class Neighbours(NamedTuple):
    """For each query the nearest of the gallery, the nearest first: their places in it, and their distances."""

    places: Int[jax.Array, "*q k"]
    distances: Float[jax.Array, "*q k"]


class Retrieved(NamedTuple):
    """The `Neighbours` found; the scan of the nearest; k -> the share of queries with a patch of their scan among
    k; and how many queries are answered in a second."""

    places: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    predicted: Int[np.ndarray, " q"]
    recall_at: dict[int, float]
    queries_per_second: float


@standard_settings(DOUBLES)
def nearest(
    queries: Shaped[jax.Array | np.ndarray, "q d"] | Any,
    gallery: Shaped[jax.Array | np.ndarray, "n e"] | Any,
    k: int | Any,
    distance: str | Any = "euclidean",
) -> Neighbours:
    """The k nearest of a gallery to each query; of those at one distance, the earlier in the gallery first.

    They are those that comparing every pair would give, whatever goes at once. A gallery in a file that is mapped into
    memory may be of any size: at most `GALLERY_AT_ONCE` rows of it are read at a time.

    Args:
        queries: features, or barcodes.
        gallery: others of the same width.
        k: how many to find.
        distance: "euclidean"; "cosine", 1 - cosine similarity; or "hamming", the bits in which barcodes differ.

    Raises:
        UserError: what is not [n d] or no numbers, no query, a gallery of fewer than k, widths that differ, features
            that are not finite or, for the cosine, all zeros, barcodes with a distance of features or the reverse, or
            an unknown distance.
    """
    check_known("distance", distance, DISTANCES)
    queries, gallery = _narrowed(rows_of("queries", queries)), _narrowed(rows_of("gallery", gallery))
    if not len(queries):
        raise UserError("queries: there are none; give one row at least")
    if not 1 <= whole("k", k) <= len(gallery):
        raise UserError(f"{k} neighbours of a gallery of {len(gallery)}: choose 1 to {len(gallery)}")
    if queries.shape[1] != gallery.shape[1]:
        widths = f"{queries.shape[1]} wide and the gallery {gallery.shape[1]}"
        raise UserError(f"the queries are {widths}; take both from one block of one network")
    if any((rows.dtype == np.uint32) != (distance == "hamming") for rows in (queries, gallery)):
        raise UserError('"hamming" is the distance of barcodes, and of them only; `barcodes` makes them of features')
    sought = _entered(queries, distance, "queries")
    found = Neighbours(jnp.full((len(queries), k), -1), jnp.full((len(queries), k), jnp.inf))
    # Parts of one size, so that one program serves: the last begins among the rows of the one before it.
    size = -(-len(gallery) // -(-len(gallery) // max(k, _rows_at_once(gallery))))
    for first in range(0, len(gallery), size):
        start = min(first, len(gallery) - size)
        part = _entered(gallery[start : start + size], distance, f"rows of the gallery from place {start} on")
        found = _search(found, sought, part, start, first, distance, AT_ONCE, SPARE)
        jax.block_until_ready(found)  # else the device would be given all parts at once
    return found


def barcodes(features: Float[jax.Array | np.ndarray, "n d"] | Any) -> Shaped[jax.Array, "n words"]:
    """Deep barcodes: of each value of a feature and the next one, a bit that is set where the next is larger.

    Packed as uint32, bit j of word i is that of value 32 i + j, and what the last word has beyond is 0. After
    Tizhoosh's min-max barcodes, and arXiv:1805.08833.

    Raises:
        UserError: features that are not [n d], not finite, or of a single value.
    """
    features = _narrowed(rows_of("features", features))
    if features.shape[1] < 2:
        raise UserError("a barcode needs features of two values at least")
    words, finite = [], []
    rows = _rows_at_once(features)
    for start in range(0, max(1, len(features)), rows):
        part = _packed(jnp.asarray(features[start : start + rows]))
        words.append(part[0])
        finite.append(np.asarray(part[1]))  # waits for it
    _refuse(~np.concatenate(finite), "features", "hold NaN or infinity; check the weights")
    return jnp.concatenate(words)


@standard_settings(DOUBLES)
def retrieve(
    train_features: Float[jax.Array | np.ndarray, "n d"] | Any,
    train_scans: Int[np.ndarray, " n"] | Any,
    test_features: Float[jax.Array | np.ndarray, "q e"] | Any,
    test_scans: Int[np.ndarray, " q"] | Any,
    kind: str | Any,
    k: int | Any = 10,
) -> Retrieved:
    """For each test patch the k nearest training patches, by a kind of `KINDS`.

    The time is of a second search, compiled by then, from the test patches' features on: making their barcodes is part
    of it, and making the gallery's is not.

    Raises:
        UserError: an unknown kind, scans that are not one whole number from 0 for each row of features, or as
            `nearest` and `barcodes`.
    """
    check_known("kind of retrieval", kind, KINDS)
    train_features, test_features = rows_of("train_features", train_features), rows_of("test_features", test_features)
    train_scans, test_scans = (
        np.asarray(labels_of(name, scans, len(rows), of="rows of features"))
        for name, scans, rows in (
            ("train_scans", train_scans, train_features),
            ("test_scans", test_scans, test_features),
        )
    )
    encode, distance = KINDS[kind]
    gallery = encode(train_features)
    if len(gallery) <= _rows_at_once(gallery):
        gallery = jnp.asarray(gallery)  # on the device for both searches

    def search() -> Neighbours:
        return jax.block_until_ready(nearest(encode(test_features), gallery, k, distance))

    search()
    begun = time.perf_counter()
    places, distances = map(np.asarray, search())
    seconds = time.perf_counter() - begun
    scans = train_scans[places]
    own = scans == test_scans[:, None]
    recall_at = {each: float(own[:, :each].any(axis=1).mean()) for each in RECALLS if each <= k}
    return Retrieved(places, distances, scans[:, 0], recall_at, len(test_features) / seconds)


def _narrowed(rows: Any) -> Any:
    """Rows of whole numbers as floats, but for barcodes: JAX would cut off what 32 bits do not hold."""
    return rows.astype(np.float32) if rows.dtype.kind in "iub" and rows.dtype != np.uint32 else rows


def _rows_at_once(rows: Shaped[jax.Array | np.ndarray, "n d"]) -> int:
    """Returns the number of rows of this width that the device holds."""
    return max(1, min(GALLERY_AT_ONCE, GALLERY_BYTES // max(1, rows.dtype.itemsize * rows.shape[1])))


def _entered(rows: Shaped[jax.Array | np.ndarray, "n d"], distance: str, name: str) -> Shaped[jax.Array, "n d"]:
    """Rows on the device as they are compared, after those that cannot be were refused."""
    enter, of_square = DISTANCES[distance]
    entered = enter(jnp.asarray(rows))
    if of_square:
        squares = np.asarray(_squares(entered))
        _refuse(~(squares < LARGEST), name, "hold NaN, infinity or what is too large to square; check the weights")
        if distance == "cosine":
            _refuse(squares == 0, name, "are zeros, which have no direction; take the Euclidean distance")
    return entered


def _refuse(wrong: Bool[np.ndarray, " n"], name: str, why: str) -> None:
    if wrong.any():
        raise UserError(f"{wrong.sum()} of the {len(wrong)} {name} {why}")


@functools.partial(jax.jit, static_argnames=("distance", "at_once", "spare"))
def _search(
    found: Neighbours,
    queries: Shaped[jax.Array, "q d"],
    gallery: Shaped[jax.Array, "n d"],
    start: Int[jax.Array, ""],
    first: Int[jax.Array, ""],
    distance: str,
    at_once: int,
    spare: int,
) -> Neighbours:
    """What was found so far, and what is nearer in a part of the gallery from place `start` on, new from `first` on."""
    (size, width), k = gallery.shape, found.places.shape[1]
    places, (_, of_square) = start + jnp.arange(size), DISTANCES[distance]

    def by_bits(found: Neighbours, query: jax.Array) -> Neighbours:
        # A word of all rows at a time: on a CPU six times as fast as row by row.
        differ = lambda total, words: (total + jax.lax.population_count(words[0] ^ words[1]), None)  # noqa: E731
        bits, _ = jax.lax.scan(differ, jnp.zeros(size, jnp.uint32), (gallery.T, query), unroll=16)
        distances = jnp.where(places < first, jnp.inf, bits.astype(jnp.float32))
        nearest, at = jax.lax.top_k(-distances, min(k, size))  # of equal ones the first
        return _merged(found, places[at], -nearest)

    def by_product(found: Neighbours, query: jax.Array) -> Neighbours:
        # |q|^2 - 2 q g + |g|^2, from an origin amid the queries, is one matrix product, and rounds. Less the most that
        # rounding can do to sums of so many terms, in any order, it is what a pair's distance is at least. The pairs
        # with the least are compared by definition, until the k-th nearest is nearer than any other pair can be.
        offset = query - origin
        squares = from_origin + jnp.square(offset).sum()
        rounding = jnp.finfo(jnp.float32).eps * (width + 8) * (2 * squares + jnp.linalg.norm(offset) * lengths)
        least = squares - 2 * (offset @ gallery.T - offset @ origin) - rounding

        def compare(state: tuple[Neighbours, jax.Array, jax.Array]) -> tuple[Neighbours, jax.Array, jax.Array]:
            assert of_square is not None
            found, least, _ = state
            lowest, at = jax.lax.top_k(-least, min(k + spare, size))
            distances = of_square(jnp.square(gallery[at] - query).sum(axis=1))
            found = _merged(found, places[at], jnp.where(jnp.isinf(lowest), jnp.inf, distances))
            # The minimum and not the last of them: XLA makes a top_k that is sliced once more a sort of all, which took
            # six times as long as the whole search.
            return found, least.at[at].set(jnp.inf), of_square(jnp.maximum(-lowest.min(), 0))

        def is_open(state: tuple[Neighbours, jax.Array, jax.Array]) -> jax.Array:
            found, _, others = state
            return (found.distances.max() >= others) & (others < jnp.inf)

        state = found, jnp.where(places < first, jnp.inf, least), jnp.zeros(())
        return jax.lax.while_loop(is_open, compare, state)[0]

    if of_square:
        origin = queries.mean(axis=0)
        from_origin, lengths = _squares(gallery - origin), jnp.sqrt(_squares(gallery)) + jnp.linalg.norm(origin)
    one = by_product if of_square else by_bits
    with products_in("float32"):
        batch_size = max(1, min(at_once, len(queries)))
        return jax.lax.map(lambda both: one(*both), (found, queries), batch_size=batch_size)


def _merged(found: Neighbours, places: Int[jax.Array, " n"], distances: Float[jax.Array, " n"]) -> Neighbours:
    """The nearest of both; of equal ones those at the earliest places."""
    both = jnp.concatenate([found.distances, distances]), jnp.concatenate([found.places, places])
    distances, places = jax.lax.sort(both, num_keys=2)
    return Neighbours(places[: len(found.places)], distances[: len(found.places)])


@jax.jit
def _squares(rows: Float[jax.Array, "n d"]) -> Float[jax.Array, " n"]:
    return jnp.square(rows).sum(axis=1)


@jax.jit
def _directions(rows: Float[jax.Array, "n d"]) -> Float[jax.Array, "n d"]:
    """Features scaled to length 1; first by their largest value, whose square may be beyond float32."""
    for order in (jnp.inf, 2):
        length = jnp.linalg.norm(rows, order, axis=1, keepdims=True)
        rows = rows / jnp.where(length == 0, 1, length)
    return rows


@jax.jit
def _packed(features: Float[jax.Array, "n d"]) -> tuple[Shaped[jax.Array, "n words"], Bool[jax.Array, " n"]]:
    """The barcodes of features; and which features are finite."""
    bits = features[:, 1:] > features[:, :-1]
    bits = jnp.pad(bits, ((0, 0), (0, -bits.shape[1] % BITS))).reshape(len(bits), -1, BITS)
    words = (bits.astype(jnp.uint32) << jnp.arange(BITS, dtype=jnp.uint32)).sum(axis=2, dtype=jnp.uint32)
    return words, jnp.isfinite(features).all(axis=1)


# name -> (what rows become before they are compared, their distance by the square of the Euclidean one)
DISTANCES: dict[str, tuple[Callable, Callable | None]] = {
    "euclidean": (lambda rows: rows.astype(jnp.float32), jnp.sqrt),
    "cosine": (lambda rows: _directions(rows.astype(jnp.float32)), lambda square: square / 2),
    "hamming": (lambda words: words, None),  # bits are counted
}

# kind -> (what is compared of features, by which distance)
KINDS: dict[str, tuple[Callable, str]] = {
    "euclidean": (lambda features: features, "euclidean"),
    "cosine": (lambda features: features, "cosine"),
    "barcode": (barcodes, "hamming"),
}
