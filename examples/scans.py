"""What the examples share: their options, patches with labels, and a network's features of them.

Without `--scans` eight scans are drawn by a program and forgotten afterwards. With a scan file, `--network inception_v3
--weights imagenet --size 224` makes the figures mean something; whatever `kimiajax.open_scans` opens will do.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import kimiajax as kj
from kimiajax.data.patch_arrays import Patches
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.io.cache import default_cache
from kimiajax.runtime.compilation_cache import keep_programs


class Task(NamedTuple):
    """A head to be trained: the classifier, features [n d] and [t d] of training and test patches, and their scans."""

    classifier: kj.Classifier
    manifest: kj.Manifest
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray

    def start(self, seed: int = 0) -> dict[str, Any]:
        """The head's variables before training."""
        return {"params": {"head": self.classifier.init_head(jax.random.key(seed), self.train.shape[1:])}}


def options_of(doc: str | None, network: str = "densenet121", size: int = 75, **others: Any) -> argparse.Namespace:
    """The options that every example takes, under its own docstring, and others with their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, metavar="PATH", help="a scan file; by default synthetic scans are drawn")
    parser.add_argument("--network", default=network, metavar="NAME", help=f"by default {network}")
    parser.add_argument("--weights", default="random", metavar="SOURCE", help="random, imagenet or a path")
    parser.add_argument("--size", type=int, default=size, metavar="PIXELS", help="side of the network's images")
    for name, default in others.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, metavar="PATH", help=f"by default {default}"
        )
    return parser.parse_args()


def patches_of(options: argparse.Namespace) -> Patches:
    """Twenty training patches a scan and all test patches, as (manifest, train, test); says whether they are real."""
    keep_programs(default_cache())  # a second run compiles nothing, as with the commands
    with tempfile.TemporaryDirectory() as folder:
        path = options.scans or Path(folder) / "scans.h5"
        if options.scans is None:
            write_synthetic_scans(path, num_scans=8, patch_size=112, grid=(7, 7), test_patches=(6, 10), seed=3)
        with kj.open_scans(path) as scans:
            manifest, train, test = kj.prepare_patches(scans, kj.Rules(patches_per_scan=20), options.size)
    whose = "SYNTHETIC scans" if manifest.about["synthetic"] else str(options.scans)
    print(f"{whose}: {manifest.num_scans} scans, {len(train)} training and {len(test)} test patches")
    return Patches(manifest, train, test)


def head_of(options: argparse.Namespace) -> Task:
    """The study's head on features, these scaled to mean 0 and deviation 1 of the training patches."""
    manifest, train, test = patches_of(options)
    weights = kj.load_weights(options.network, options.weights, image_size=options.size)
    print(f"{weights.backbone.title} with {options.weights} weights, a head on its features")
    features, tested = (
        kj.extract_features(weights.backbone, weights.variables, images, cache=default_cache())
        for images in (train, test)
    )
    # The paper's heads take features as they are; those of random weights differ so little that nothing would train.
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    features, tested = (features - mean) / deviation, (tested - mean) / deviation
    classifier = kj.Classifier(weights.backbone, (), manifest.num_scans)
    return Task(classifier, manifest, features, tested, manifest.labels("train"), manifest.labels("test"))
