"""Near duplicates are found by what a pair shares beyond what all pictures share."""

import numpy as np
from scipy.ndimage import gaussian_filter

from kimiajax.data.audit import near_duplicates
from kimiajax.data.audit.near_duplicates import THUMBNAIL, near_pairs


def rim_of_tissue(rng):
    """Tissue against glass, half of each: the shape of the rim is most of the picture."""
    y, x = np.mgrid[:THUMBNAIL, :THUMBNAIL] / THUMBNAIL - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    texture = gaussian_filter(rng.normal(size=x.shape), 1.5)
    inside = x * np.cos(angle) + y * np.sin(angle) > rng.uniform(-0.3, 0.3)
    return np.where(inside, 170 + 12 * texture / texture.std(), 238).astype(np.uint8)


def test_patches_at_the_rim_of_tissue_that_are_strangers_are_no_duplicates(rng):
    train = np.stack([rim_of_tissue(rng) for _ in range(600)])
    test = np.stack([rim_of_tissue(rng) for _ in range(40)])
    assert near_pairs(train, test) == []
    (pair,) = near_pairs(train, np.rot90(train[7:8], 1, axes=(1, 2)))
    assert (pair.first, pair.second) == (7, 0)


def test_a_pattern_that_all_pictures_share_makes_no_duplicates(rng, monkeypatch):
    pattern = np.indices((THUMBNAIL, THUMBNAIL)).sum(axis=0) % 2 * 60
    train, test = (np.stack([rim_of_tissue(rng) for _ in range(n)]) - pattern.astype(np.uint8) for n in (600, 40))
    test[3] = train[7]
    ((first, second, _),) = near_pairs(train, test)
    assert (first, second) == (7, 3)
    monkeypatch.setattr(near_duplicates, "MANY", 10**6)
    assert len(near_pairs(train, test)) > 1, "the pattern would make some"


def test_a_picture_with_many_near_copies_is_found_each_time(rng):
    """It makes much of the mean picture, and is not what all pictures share."""
    train = np.stack([rim_of_tissue(rng) for _ in range(100)])
    copies = np.clip(train[7] + rng.normal(scale=6, size=(32, *train[7].shape)), 0, 255).astype(np.uint8)
    found = near_pairs(np.concatenate([train, copies]), train[7:8])
    assert {pair.first for pair in found} >= {7, *range(100, 132)}
