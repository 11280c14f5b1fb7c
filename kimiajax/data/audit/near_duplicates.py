"""Patches that are the same picture: pixel by pixel, or nearly, also turned or mirrored."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from kimiajax.data.audit.alignment import oriented
from kimiajax.data.manifest import Patch
from kimiajax.shapes import Float, Int, Shaped, UInt8

THUMBNAIL = 64  # side of the pictures that are compared, in pixels
BITS = 12  # of 64 in which two perceptual hashes may differ to be looked at closely: random ones differ in 32
DETAIL = 2.0  # pixels of a thumbnail: what varies more slowly, as a rim of tissue against glass does, proves nothing
ALIKE = 0.6  # correlation of the rest from which they are called the same picture; strangers' stays under 0.35
BLOCK = 2048  # hashes compared at a time
SHARED = 0.5  # of a picture's details, by norm, that nine of ten pictures must share; strangers share under 0.1
SAMPLE = 500  # pictures that are asked for it
MANY = 64  # pictures from which it is known what all share: a fixed pattern of a scanner, say, which proves nothing
FLAT = 2.0  # standard deviation, in gray levels, under which a thumbnail shows nothing to compare


class Pair(NamedTuple):
    """Two patches that are alike, by their places in the sequences compared, and how much: a correlation."""

    first: int
    second: int
    alike: float


def same_pixels(patches: Iterable[Patch]) -> list[list[Patch]]:
    """Groups of patches with equal digests."""
    groups: dict[str | None, list[Patch]] = {}
    for patch in patches:
        groups.setdefault(patch.sha256, []).append(patch)
    return [group for group in groups.values() if len(group) > 1]


def perceptual_hash(thumbnails: UInt8[np.ndarray, "n s s"]) -> Int[np.ndarray, " n"]:
    """64 bits each: which of the 8 x 8 lowest frequencies of the cosine transform lie above their median.

    As in Zauner, *Implementation and Benchmarking of Perceptual Image Hash Functions* (2010).
    """
    frequencies = cast(np.ndarray, dctn(thumbnails.astype(np.float32), axes=(1, 2)))
    lowest = frequencies[:, :8, :8].reshape(len(thumbnails), 64)
    lowest[:, 0] = 0
    bits = lowest > np.median(lowest[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.int64).ravel()


def near_pairs(first: UInt8[np.ndarray, "n s s"], second: UInt8[np.ndarray, "m s s"]) -> list[Pair]:
    """Pictures of `second` that are nearly pictures of `first`, upright, turned or mirrored; the most alike first.

    Hashes find what may be alike, and the correlation of the details of two thumbnails decides, without the details
    that all pictures share.
    """
    shared = _shared(np.concatenate([first, second]))
    seen = np.flatnonzero(first.std(axis=(1, 2)) >= FLAT)
    hashes = perceptual_hash(first[seen])
    found: dict[tuple[int, int], float] = {}
    for turned in map(np.stack, zip(*map(oriented, second))):  # all in the first orientation, then all in the next
        for start in range(0, len(second), BLOCK):
            block = turned[start : start + BLOCK]
            distance = np.bitwise_count(perceptual_hash(block)[:, None] ^ hashes[None])
            for there, here in np.argwhere(distance <= BITS).tolist():
                key = int(seen[here]), start + there
                alike = float(_detail(first[key[0]], shared) @ _detail(block[there], shared))
                if alike >= ALIKE:
                    found[key] = max(alike, found.get(key, 0))
    return sorted((Pair(*key, alike) for key, alike in found.items()), key=lambda pair: -pair.alike)


def _shared(pictures: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, "p k"]:
    """Returns an orthonormal basis of the details that nearly all pictures share, turned and mirrored; else none.

    The mean picture tells them. It holds details of a picture with many copies, too: those only the copies have.
    """
    none = np.empty((THUMBNAIL**2, 0), np.float32)
    if len(pictures) < MANY:
        return none
    mean = pictures.mean(axis=0, dtype=np.float32)
    basis, sizes, _ = np.linalg.svd(np.stack([_fine(turned) for turned in oriented(mean)], axis=1), full_matrices=False)
    basis = basis[:, sizes > 1e-3 * max(float(sizes[0]), 1.0)]
    some = pictures[:: max(1, len(pictures) // SAMPLE)]
    shares = [np.linalg.norm(basis.T @ fine) / max(np.linalg.norm(fine), 1e-6) for fine in map(_fine, some)]
    return basis if np.quantile(shares, 0.1) > SHARED else none


def _fine(gray: Shaped[np.ndarray, "s s"]) -> Float[np.ndarray, " p"]:
    """What varies quickly in a picture, as a row of mean 0."""
    gray = gray.astype(np.float32)
    fine = (gray - gaussian_filter(gray, DETAIL)).ravel()
    return fine - fine.mean()


def _detail(picture: UInt8[np.ndarray, "s s"], shared: Float[np.ndarray, "p k"]) -> Float[np.ndarray, " p"]:
    """What varies quickly in a picture and is not shared, as a row of length 1; a constant one is all 0."""
    fine = _fine(picture)
    fine -= shared @ (shared.T @ fine)
    return fine / max(float(np.linalg.norm(fine)), 1e-6)
