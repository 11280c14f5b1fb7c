"""The nearest of many features, by Euclidean distance, as one matrix product."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.errors import UserError
from kimiajax.shapes import Float, Int

AT_ONCE = 256  # queries whose distances to all of the gallery are held


class Neighbours(NamedTuple):
    """For each query the nearest of the gallery, the nearest first: their places in it, and their distances."""

    places: Int[jax.Array, "q k"]
    distances: Float[jax.Array, "q k"]


def nearest(
    queries: Float[jax.Array | np.ndarray, "q d"], gallery: Float[jax.Array | np.ndarray, "n d"], k: int
) -> Neighbours:
    """The k nearest features of a gallery to each query.

    They are found by |q|^2 - 2 q g + |g|^2, which rounds where two features are much alike; the distances of those that
    are found are then taken as they are defined.

    Raises:
        UserError: a gallery of fewer than k features.
    """
    if not 1 <= k <= len(gallery):
        raise UserError(f"{k} neighbours of a gallery of {len(gallery)}: choose 1 to {len(gallery)}")
    return _nearest(jnp.asarray(queries), jnp.asarray(gallery), k)


@functools.partial(jax.jit, static_argnames="k")
def _nearest(queries: jax.Array, gallery: jax.Array, k: int) -> Neighbours:
    squares = jnp.square(gallery).sum(axis=1)

    def of_one(query: jax.Array) -> Neighbours:
        # The query's own square is the same for all of the gallery.
        _, places = jax.lax.top_k(2 * (gallery @ query) - squares, k)
        distances = jnp.sqrt(jnp.square(gallery[places] - query).sum(axis=1))
        order = jnp.argsort(distances)
        return Neighbours(places[order], distances[order])

    return Neighbours(*jax.lax.map(of_one, queries, batch_size=min(AT_ONCE, len(queries))))
