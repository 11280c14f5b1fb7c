import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from kimiajax import retrieval
from kimiajax.errors import UserError
from kimiajax.retrieval import nearest


@pytest.mark.parametrize("at_once", [4, 100])
def test_neighbours_are_scikit_learns_however_many_queries_go_at_once(rng, monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "AT_ONCE", at_once)
    retrieval._nearest.clear_cache()
    gallery, queries = rng.standard_normal((50, 8)).astype(np.float32), rng.standard_normal((9, 8)).astype(np.float32)
    distances, places = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(gallery).kneighbors(queries)
    found = nearest(queries, gallery, 5)
    np.testing.assert_array_equal(found.places, places)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-5)


def test_a_feature_of_the_gallery_is_its_own_neighbour_at_distance_0_beside_large_ones(rng):
    gallery = (1000 + rng.standard_normal((50, 8))).astype(np.float32)
    found = nearest(gallery[:3], gallery, 1)
    np.testing.assert_array_equal(found.distances, 0)


def test_more_neighbours_than_there_are_are_refused():
    with pytest.raises(UserError, match="4 neighbours of a gallery of 3: choose 1 to 3"):
        nearest(np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float32), 4)
