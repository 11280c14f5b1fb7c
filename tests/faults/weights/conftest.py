"""Weights of a small VGG16 in the layouts of Keras and torch, which each test may damage."""

import shutil
import tempfile
import zipfile

import h5py
import pytest

from faults.weights.planting import keras_arrays, keras_file
from weights_convert.arrays import KERAS_MEMBER


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """So that what a command leaves there is seen, and what leaves it upwards too."""
    folder = tmp_path / "of" / "temporary" / "files"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="package")
def arrays():
    return keras_arrays("vgg16")


@pytest.fixture(scope="package")
def vgg16(arrays, tmp_path_factory):
    """VGG16 without top as Keras lays it out."""
    return keras_file(tmp_path_factory.mktemp("keras") / "vgg16.h5", arrays)


@pytest.fixture
def changed(vgg16, tmp_path):
    """A copy of that file with a change to it."""

    def copy(change):
        path = tmp_path / "changed.h5"
        shutil.copyfile(vgg16, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return copy


@pytest.fixture
def archive(vgg16, tmp_path):
    """Writes an archive as Keras does, with members of other names before its arrays."""

    def write(*others, arrays=vgg16):
        with zipfile.ZipFile(tmp_path / "x.keras", "w") as file:
            for name in ("metadata.json", "config.json", *others):
                file.writestr(name, b"{}")
            file.write(arrays, KERAS_MEMBER)
        return tmp_path / "x.keras"

    return write
