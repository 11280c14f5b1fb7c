"""Pickles, and whatever else would run: never loaded."""

import contextlib
import os
import pickle
import zipfile

import numpy as np
import pytest

from faults.harness import ask, files_of, nothing_changes, refused
from faults.weights.planting import convert, features, refused_whole
from kimiajax.io.cache import vouch_for
from kimiajax.weights.load import load_weights


class Trap:
    """Whoever unpickles it leaves a folder behind."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path / "sprung")


@pytest.fixture
def unpickling_fails(monkeypatch):
    """Any unpickling fails the test, NumPy's too."""

    def forbidden(*arguments, **options):
        pytest.fail("something is unpickled")

    @contextlib.contextmanager
    def forbid():
        with monkeypatch.context() as patched:
            for name in ("load", "loads", "Unpickler", "_Unpickler"):
                patched.setattr(pickle, name, forbidden)
            yield

    return forbid


def objects(trap):
    return np.array([trap], dtype=object)


def write_torch_zip(path, trap):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap))


def read_torch_zip(path):
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))


def write_npz(path, trap):
    with path.open("wb") as file:
        np.savez(file, **{"block1_conv1/kernel": objects(trap)})


def write_npy(path, trap):
    with path.open("wb") as file:
        np.save(file, objects(trap))


def read_npz(path):
    with np.load(path, allow_pickle=True) as arrays:
        arrays["block1_conv1/kernel"]


def write_pickle(path, trap):
    path.write_bytes(pickle.dumps(trap, protocol=2))


def read_pickle(path):
    pickle.loads(path.read_bytes())


NEVER = "a pickle, which can run any program and is never loaded"
PICKLES = {
    "a pickle": ("vgg16.pth", write_pickle, read_pickle, NEVER),
    "a pickle named as HDF5": ("vgg16.h5", write_pickle, read_pickle, NEVER),
    "a pickle named as safetensors": ("vgg16.safetensors", write_pickle, read_pickle, NEVER),
    "an old pickle": (
        "vgg16.pkl",
        lambda path, trap: path.write_bytes(pickle.dumps(trap, protocol=0)),
        read_pickle,
        "not a .h5, .keras or .safetensors file",
    ),
    "a zip of torch's": ("vgg16.pt", write_torch_zip, read_torch_zip, NEVER),
    "objects in .npz": ("vgg16.npz", write_npz, read_npz, "a zip archive that Keras did not save"),
    "objects in .npy": (
        "vgg16.npy",
        write_npy,
        lambda path: np.load(path, allow_pickle=True),
        "not a .h5, .keras or .safetensors file",
    ),
}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_in_place_of_weights_is_never_loaded(scans, tmp_path, trap, unpickling_fails, kind):
    name, write, read, word = PICKLES[kind]
    write(tmp_path / name, trap)
    with unpickling_fails():
        refused_whole(scans, tmp_path, tmp_path / name, word)
        with nothing_changes(tmp_path):
            refused(convert("torch", "vgg16", tmp_path / name, tmp_path / "out"), name, word)
    assert not trap.folder.exists()
    read(tmp_path / name)
    assert trap.folder.exists(), "whoever loads it leaves a folder behind"


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("write", [write_npy, write_npz, write_pickle], ids=["objects", "an archive", "a pickle"])
def test_a_pickle_in_the_cache_is_never_loaded_and_what_it_stood_for_is_computed_again(
    scans, tmp_path, trap, unpickling_fails, write
):
    cache, weights = tmp_path / "cache", load_weights("cnn", "random", image_size=32)
    weights.save(tmp_path / "cnn")

    def run(out):
        return features(scans, tmp_path / "cnn", tmp_path / out, "--cache", cache, network="cnn")

    assert run("before").status == 0
    kept = [*cache.glob("features/*/*.npy"), *cache.glob("pixels/*/*.npy")]
    assert len(kept) == 6, "of training and test patches each: their pixels, their features and whose these are"
    for path in kept:
        write(path, trap)
        vouch_for(path.parent)  # by whoever put it there
    with unpickling_fails():
        ended = run("after")
    assert ended.status == 0, ended
    assert not trap.folder.exists()
    assert "computed again" in ended.said or "reading train patches" in ended.said
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "features.npy") for name in ("before", "after")))
    assert all(np.load(path).dtype in (np.uint8, np.float32) for path in kept)


@pytest.mark.fault("pickles")
def test_objects_in_a_survey_that_was_kept_are_never_loaded(scans, tmp_path, trap, unpickling_fails):
    def run(out):
        return ask("data", "export", "--scans", scans, "--out", tmp_path / out, "--cache", tmp_path / "cache")

    assert run("before").status == 0
    (survey,) = (tmp_path / "cache").glob("surveys/*.npz")
    with np.load(survey) as arrays:
        names = arrays.files
    with survey.open("wb") as file:
        np.savez(file, **dict.fromkeys(names, objects(trap)))
    for path in (tmp_path / "cache").glob("manifests/*"):
        path.unlink()
    with unpickling_fails():
        assert run("after").status == 0
    assert not trap.folder.exists()
    assert files_of(tmp_path / "before") == files_of(tmp_path / "after")


@pytest.mark.fault("pickles")
def test_pickles_in_the_place_of_what_a_row_learnt_are_never_loaded(scans, tmp_path, trap, unpickling_fails):
    run = ("table", "quick", "--scans", scans, "--rows", "floor_mean_sd", "--image-size", 32, "--out", tmp_path / "run")
    assert ask(*run).status == 0
    learnt = tmp_path / "run" / "checkpoints" / "floor_mean_sd"
    for path in learnt.rglob("*"):
        if path.is_file():
            write_pickle(path, trap)
    with unpickling_fails():
        with nothing_changes(tmp_path):
            ended = ask("predict", tmp_path / "run" / "floor_mean_sd", scans)
            refused(ended, learnt, "the same `kimiajax table` computes it again")
        ended = ask(*run)
    assert ended.status == 0, ended
    assert "floor_mean_sd is computed again" in ended.said
    assert not trap.folder.exists()
    assert ask("predict", tmp_path / "run" / "floor_mean_sd", scans).status == 0
