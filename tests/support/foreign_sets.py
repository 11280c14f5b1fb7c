"""Sets as others prepare them with TFDS, and ways to read them: what the tests of prepared sets share."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets import features as kinds

from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.tfds.datasets import Dataset, quiet_tfds
from kimiajax.errors import UserError

TISSUES = ["01_TUMOR", "02_STROMA", "03_COMPLEX"]
COLOUR = {
    "image": kinds.Image(shape=(None, None, 3)),
    "label": kinds.ClassLabel(names=TISSUES),
    "filename": kinds.Text(),
}
GRAY = {"picture": kinds.Image(shape=(None, None, 1)), "grade": np.int64, "patient": kinds.Text()}
KEYS = {"image": "picture", "label": "grade"}
HELD_OUT = Rules(test_patches_per_scan=1)


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of whoever, with the features and the examples that a test gives."""

    name = "foreign"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, kinds_of: dict[str, Any], splits: dict[str, list[dict[str, Any]]], **options: Any):
        self._kinds, self._splits = kinds_of, splits
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(self._kinds))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(examples) for split, examples in self._splits.items()}

    def _generate_examples(self, examples: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        return iter(enumerate(examples))


class Configured(Foreign, skip_registration=True):
    """The same in two configs."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("small", "large")]  # noqa: RUF012


def prepare(root, splits, features=COLOUR, shards=1, kind=Foreign, **options):
    """Prepares a set anew, and returns its folder."""
    tfds.disable_progress_bar()
    with quiet_tfds():
        builder = kind(features, splits, data_dir=str(root), **options)
        shutil.rmtree(builder.data_dir, ignore_errors=True)
        builder = kind(features, splits, data_dir=str(root), **options)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return Path(builder.data_dir)


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def gray_of(content):
    """What `read_gray` should give of a gray or an RGB image, to one gray value."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels if pixels.ndim == 2 else (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def colours(rng, count=6, **changes):
    """So many examples of each tissue; a change is a value, or a function of the example's number."""
    examples = []
    for k in range(3 * count):
        example = {"image": encoded(noise(rng, 8, 8, 3)), "label": k % 3, "filename": f"tile_{k}.tif"}
        changed = {name: value(k) if callable(value) else value for name, value in changes.items()}
        examples.append(example | changed)
    return examples


def grays(rng, count, classes=2):
    return [{"picture": encoded(noise(rng, 8, 8)), "grade": k % classes, "patient": f"p{k // 3}"} for k in range(count)]


@contextlib.contextmanager
def opened(root, *, cache=None, name="foreign", **which):
    with open_scans(Dataset(name, root, **which), cache=cache) as source:
        yield source


def read_all(root, **which):
    """Every record that is used, read as the table reads it."""
    with opened(root, **which) as source:
        return read_patches(source, cut_patches(source, HELD_OUT), 8)


def refusal(root, **which):
    """What is said, in one line, when a set is opened and read."""
    with pytest.raises(UserError) as caught:
        read_all(root, **which)
    message = str(caught.value)
    assert "\n" not in message
    return message


def of_split(source, split):
    """Each patch's scan and its pixels, by name."""
    patches = cut_patches(source, HELD_OUT).split(split)
    return {patch.patch_id: (patch.scan, source.read_patch(patch)) for patch in patches}


def assert_written(found, examples, image="image", label="label"):
    """That patches are the examples: as many, each with the label that its pixels had, whatever their order."""
    wanted = [(example[label], gray_of(example[image]).astype(int)) for example in examples]
    assert len(found) == len(wanted)
    for scan, pixels in found.values():
        close = [k for k, (_, other) in enumerate(wanted) if np.abs(pixels.astype(int) - other).max() <= 1]
        assert len(close) == 1
        assert wanted.pop(close[0])[0] == scan


def table(root, out, *more):
    """The command of a small table."""
    command = ["table", "demo", "--dataset", "foreign", "--data-dir", str(root), "--out", str(out)]
    command += ["--rows", "floor_histogram", "floor_mean_sd", "--patches-per-scan", "2"]
    return [*command, "--test-patches-per-scan", "2", *map(str, more)]
