"""Prepared sets that would mislead, or that are damaged: refused in one line, by name."""

import json
import re
import shutil

import numpy as np
import pytest
from support.foreign_sets import (
    COLOUR,
    GRAY,
    HELD_OUT,
    KEYS,
    colours,
    encoded,
    gray_of,
    grays,
    noise,
    of_split,
    opened,
    prepare,
    read_all,
    refusal,
    table,
)
from support.python import run as run_python
from tensorflow_datasets import features as kinds

from kimiajax.cli.main import main
from kimiajax.data.patches import cut_patches
from kimiajax.errors import UserError

# What is refused


@pytest.mark.parametrize(
    ("which", "messages"),
    [
        ({"name": "absent"}, ["holds no prepared 'absent', but foreign", "--data-dir"]),
        ({"name": ""}, ["holds no prepared '', but foreign"]),
        ({"name": "../sets/foreign"}, ["holds no prepared '../sets/foreign'"]),
        ({"name": "foreign:2.0.0"}, ["holds no prepared 'foreign:2.0.0', but foreign"]),
        ({"label": "class"}, ["--label-key class: no such feature; it has ", "label (ClassLabel)", "filename (Text)"]),
        ({"image": "picture"}, ["--image-key picture: no such feature; it has ", "image (Image)"]),
        ({"label": "filename"}, ["--label-key filename: holds no classes; it has ", "label (ClassLabel)"]),
        ({"label": "image"}, ["--label-key image: holds no classes"]),
        ({"label": "score"}, ["--label-key score: holds no classes"]),
        ({"label": "genes"}, ["--label-key genes: holds no classes"]),
        ({"label": "nested"}, ["--label-key nested: holds no classes"]),
        ({"image": "filename"}, ["--image-key filename: holds no 8-bit images; it has ", "image (Image)"]),
        ({"train": "training"}, ["--train-split training: no such split; it has train"]),
        ({"test": "test"}, ["--test-split test: no such split; it has train"]),
        ({"train": "train["}, ["--train-split train[: no such split; it has train"]),
        ({"train": ""}, ["--train-split : no such split; it has train"]),
        ({"train": "train[:0]"}, ["--train-split train[:0]: is empty"]),
        ({"test": "train[:0]"}, ["--test-split train[:0]: is empty"]),
        ({"train": "train[:1]"}, ["in train[:1]; every class needs a training image"]),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_refused_with_what_there_is(tmp_path, rng, which, messages):
    features = {**COLOUR, "score": np.float32, "genes": kinds.Sequence(np.int64), "nested": {"label": np.int64}}
    values = {"score": 0.5, "genes": [1, 2], "nested": {"label": 0}}
    prepare(tmp_path / "sets", {"train": colours(rng, 2, **values)}, features)
    message = refusal(tmp_path / "sets", **which)
    assert str(tmp_path / "sets") in message
    for expected in messages:
        assert expected in message


def test_a_folder_that_holds_no_set_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    for name in ("empty", "file", "absent"):
        message = refusal(tmp_path / name)
        assert message.startswith(f"{tmp_path / name}: holds no prepared 'foreign'")
        assert "--data-dir" in message


DEEP = encoded(np.zeros((8, 8), np.uint16))


def square(k):
    return encoded(np.full((8 + (k == 4), 8 + (k == 4), 3), 100 + k, np.uint8))


@pytest.mark.parametrize(
    ("changes", "features", "message"),
    [
        ({"label": 0}, {"label": kinds.ClassLabel(names=["only"])}, "--label-key label: has a single class"),
        ({"label": lambda k: k % 2}, {}, "no record of 03_COMPLEX in train; every class needs a training image"),
        ({"label": -1}, {}, "of train has the label -1, which is no class; choose a split that is labelled"),
        ({"image": encoded(np.zeros((8, 9, 3), np.uint8))}, {}, "images of 8 x 9 pixels; patches are squares"),
        ({}, {"image": kinds.Image(shape=(8, 9, 3))}, "images of 8 x 9 pixels; patches are squares"),
        ({"image": square}, {}, "has 9 x 9 pixels and other patches 8 x 8"),
        ({}, {"image": kinds.Image(shape=(9, 9, 3))}, "has 8 x 8 pixels and other patches 9 x 9"),
        ({"image": DEEP}, {"image": kinds.Image(dtype=np.uint16)}, "--image-key image: holds no 8-bit images"),
        ({"image": DEEP}, {}, "more than 8 bits a channel; save it as 8-bit gray"),
        ({"image": encoded(np.zeros((8, 8, 4), np.uint8))}, {}, "is transparent in places"),
        ({"image": b"<!DOCTYPE html>"}, {}, "a web page"),
        ({"image": b""}, {}, "an empty file"),
        ({"image": encoded(noise(np.random.default_rng(6), 8, 8, 3))[:120]}, {}, "a damaged image"),
    ],
    ids=["one", "class", "label", "oblong", "oblong2", "sizes", "sizes2", "16", "16 2", "rgba", "html", "none", "cut"],
)
def test_a_set_that_would_have_to_be_guessed_at_is_refused(tmp_path, rng, changes, features, message):
    folder = prepare(tmp_path, {"train": colours(rng, 2, **changes)}, {**COLOUR, **features})
    said = refusal(tmp_path)
    assert said.startswith(f"{folder}: ")
    assert message in said


def test_unlabelled_test_images_are_refused_and_another_split_serves(tmp_path, rng):
    splits = {"train": colours(rng, 2), "test": colours(rng, 1, label=-1), "validation": colours(rng, 1)}
    folder = prepare(tmp_path, splits)
    assert refusal(tmp_path) == (
        f"{folder}: record 0 of test has the label -1, which is no class; choose a split that is labelled, or prepare "
        "the set again"
    )
    assert len(read_all(tmp_path, test="validation").test) == 3


def test_a_test_image_of_a_class_without_training_images_is_refused_also_where_labels_are_numbers(tmp_path, rng):
    folder = prepare(tmp_path, {"train": grays(rng, 4), "test": grays(rng, 4, classes=3)}, GRAY)
    said = refusal(tmp_path, **KEYS)
    assert said.startswith(f"{folder}: ")
    assert re.search(r"\b2\b", said.removeprefix(str(folder)))


def test_numbers_that_are_no_classes_are_refused_before_they_fill_the_memory(tmp_path, rng):
    examples = grays(rng, 4)
    prepare(tmp_path, {"train": [*examples, {**examples[0], "grade": 10**12}]}, GRAY)
    done = run_python(f"""
import resource
from pathlib import Path
from kimiajax.data.open_scans import open_scans
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    open_scans(Dataset("foreign", Path({str(tmp_path)!r}), "picture", "grade")).offered()
except UserError as error:
    print(error)
""")
    assert done.stdout.startswith(f"{tmp_path / 'foreign' / '1.0.0'}: "), done.stderr


@pytest.mark.parametrize("kind", ["tfrecord", "riegeli"])
def test_a_set_in_a_format_of_tensorflows_is_refused_with_the_command_that_prepares_another(tmp_path, rng, kind):
    folder = prepare(tmp_path, {"train": colours(rng, 1)})
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": kind}))
    said = refusal(tmp_path)
    assert said.startswith(f"{folder}: is prepared as {kind}, which cannot be read without TensorFlow")
    assert 'file_format="array_record"' in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scans", "x.h5", "--dataset", "foreign"], "--scans x.h5 and --dataset foreign: give one of them"),
        (["--scans", "x.h5", "--label-key", "grade"], "--label-key grade: is for --dataset"),
        (["--scans", "x.h5", "--data-dir", "x"], "--data-dir x: is for --dataset"),
        (["--test-split", "test"], "--test-split test: is for --dataset"),
        ([], "--dataset NAME of a prepared data set"),
    ],
    ids=str,
)
def test_flags_that_go_ill_together_are_refused_by_every_command(tmp_path, capsys, arguments, message):
    quick = ["table", "quick", "--rows", "floor_histogram"]
    for command in (quick, ["data", "audit"], ["data", "export"], ["features", "cnn"]):
        assert main([*command, *arguments, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("kimiajax: ")
        assert message in line


def test_places_are_not_explained_of_a_set_whose_patches_were_cut(colour, capsys):
    assert main(["data", "explain", "--dataset", "foreign", "--data-dir", str(colour)]) == 2
    assert "a prepared data set holds patches that were cut already" in capsys.readouterr().err


# Damage

SHARDS = 2
SHARD = "foreign-train.array_record-0000{}-of-00002"
BLOCK = 2**16  # bytes, by which array_record pads its files


@pytest.fixture
def damaged(colour, tmp_path):
    """The folder of a copy that a test may damage."""
    shutil.copytree(colour, tmp_path / "sets")
    return tmp_path / "sets" / "foreign" / "1.0.0"


def rewritten(name, change):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def inverted(content, start, count):
    return content[:start] + bytes(byte ^ 255 for byte in content[start : start + count]) + content[start + count :]


def in_image(content):
    """With bytes inverted amid the compressed pixels of the first image that lies there as it is."""
    return inverted(content, content.index(b"IDAT") + 20, 8)


SHARD_DAMAGE = {
    "missing": lambda folder: (folder / SHARD.format(1)).unlink(),
    "a folder": lambda folder: ((folder / SHARD.format(1)).unlink(), (folder / SHARD.format(1)).mkdir()),
    "empty": rewritten(SHARD.format(1), lambda content: b""),
    "a few bytes": rewritten(SHARD.format(1), lambda content: content[:100]),
    "under a block": rewritten(SHARD.format(1), lambda content: content[: BLOCK - 1]),
    "a block": rewritten(SHARD.format(1), lambda content: content[:BLOCK]),
    "over a block": rewritten(SHARD.format(1), lambda content: content[: BLOCK + 1000]),
    "one byte short": rewritten(SHARD.format(1), lambda content: content[:-1]),
    "an image": rewritten(SHARD.format(1), in_image),
    "zeros": rewritten(SHARD.format(1), lambda content: bytes(len(content))),
    "noise": rewritten(SHARD.format(1), lambda content: np.random.default_rng(0).bytes(len(content))),
    "text": rewritten(SHARD.format(1), lambda content: b"x" * len(content)),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_a_damaged_shard_is_refused_by_the_sets_name(damaged, damage):
    damage(damaged)
    said = refusal(damaged.parents[1])
    assert said.startswith(f"{damaged}: record ")
    assert said.endswith("prepare the set again")


@pytest.mark.parametrize("damage", ["a block", "an image", "missing"])
def test_damage_is_one_line_and_a_status(damaged, tmp_path, capsys, damage):
    SHARD_DAMAGE[damage](damaged)
    assert main(table(damaged.parents[1], tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"kimiajax: {damaged}: record " in error
    assert "Traceback" not in error


def test_no_inverted_byte_gives_other_pixels(damaged, tissues):
    shard, root = damaged / SHARD.format(0), damaged.parents[1]
    content = shard.read_bytes()
    with opened(root) as source:
        sound = of_split(source, "train") | of_split(source, "test")
    refused = 0
    used = len(content[:BLOCK].rstrip(b"\0"))
    for start in range(0, used, used // 40):
        shard.write_bytes(inverted(content, start, 1))
        try:
            with opened(root) as source:
                found = of_split(source, "train") | of_split(source, "test")
        except UserError:
            refused += 1
            continue
        assert found.keys() == sound.keys()
        for name, (scan, pixels) in found.items():
            assert scan == sound[name][0]
            np.testing.assert_array_equal(pixels, sound[name][1])
    assert refused > 30


def test_a_shard_that_is_damaged_while_it_is_open_gives_no_other_pixels(damaged, tissues):
    with opened(damaged.parents[1]) as source:
        patches = cut_patches(source, HELD_OUT).patches
        for number in range(SHARDS):
            rewritten(SHARD.format(number), in_image)(damaged)
        found, said = {}, []
        for patch in patches:
            try:
                found[patch.patch_id] = patch.scan, source.read_patch(patch)
            except UserError as error:
                said.append(str(error))
    assert said
    assert all(message.endswith("prepare the set again") for message in said)
    wanted = {(example["label"], gray_of(example["image"]).tobytes()) for example in tissues}
    assert {(scan, pixels.tobytes()) for scan, pixels in found.values()} <= wanted


DAMAGES = (b"", b"garbage", b"{}", b"[]", b"null", b"\xff\xfe\x00")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", DAMAGES, ids=repr)
def test_a_description_that_cannot_be_read_is_refused_with_what_mends_it(damaged, name, content):
    (damaged / name).write_bytes(content)
    said = refusal(damaged.parents[1])
    assert str(damaged.parents[1]) in said
    assert re.search("prepare (it|the set) again", said)


def test_metadata_of_another_program_is_passed_over(damaged):
    for content in ("{", "[]", '{"kimia": 1, "synthetic": true}'):
        (damaged / "metadata.json").write_text(content)
        with opened(damaged.parents[1]) as source:
            assert (source.synthetic, source.unverified, source.origin) == (False, None, None)
