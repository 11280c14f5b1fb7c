"""Archives of Keras: the arrays are unpacked, their descriptions read, and nothing else."""

import io
import shutil
import struct
import tempfile
import zipfile

import pytest

from faults.harness import files_of, nothing_changes, refused
from faults.weights.planting import block1, drop, keras_file, ones, refused_whole, turned
from weights_convert.arrays import DESCRIPTIONS, KERAS_MEMBER


@pytest.mark.fault("pickles")
def test_of_an_archive_arrays_and_descriptions_alone_are_read_whatever_the_others_are_named(
    scans, tmp_path, monkeypatch, archive
):
    read, opened = zipfile.ZipFile.open, []

    def spied(self, name, *rest, **options):
        if self.filename == str(file):
            opened.append(getattr(name, "filename", name))
        return read(self, name, *rest, **options)

    file = archive("../../evil", str(tmp_path / "evil"), "..\\evil", "assets/../../../evil")
    monkeypatch.setattr(zipfile.ZipFile, "open", spied)
    before = files_of(tmp_path)
    ended = block1(scans, file, tmp_path / "out")
    assert ended.status == 0, ended
    assert set(opened) == {KERAS_MEMBER, *DESCRIPTIONS}
    assert {name for name in files_of(tmp_path) if not name.startswith("out/")} == set(before)
    assert not list(tmp_path.rglob("*evil*"))


def cut(content):
    return content[: len(content) // 2]


def before_the_first_byte(content):
    """Its members are said to lie there."""
    end = content.rindex(b"PK\x05\x06")
    return content[: end + 16] + struct.pack("<I", 2**30) + content[end + 20 :]


def of_a_newer_version(content):
    place = content.rindex(b"PK\x01\x02")
    return content[: place + 6] + struct.pack("<H", 990) + content[place + 8 :]


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("damage", [cut, before_the_first_byte, of_a_newer_version, turned])
def test_a_damaged_archive_is_refused(scans, tmp_path, archive, damage):
    small = keras_file(tmp_path / "small.h5", {"block1_conv1/kernel": ones(3, 3, 3, 64)})
    file = archive(arrays=small)
    file.write_bytes(damage(file.read_bytes()))
    refused_whole(scans, tmp_path, file, "a damaged archive", "fetch or save it again")


@pytest.mark.fault("pickles")
def test_an_archive_behind_an_hdf5_file_does_not_take_its_place(scans, tmp_path, changed):
    """zipfile looks for an archive at a file's end."""
    file = changed(drop("block3_conv1/bias"))
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as members:
        members.writestr("config.json", "{}")
    with file.open("ab") as stream:
        stream.write(hidden.getvalue())
    assert zipfile.is_zipfile(file)
    refused_whole(scans, tmp_path, file, "missing: block3_conv1/bias")


@pytest.mark.fault("disks")
def test_a_disk_that_is_full_while_an_archive_is_unpacked_is_named(scans, tmp_path, monkeypatch, archive):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = archive()
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with nothing_changes(tmp_path):
        refused(block1(scans, file, tmp_path / "out"), tempfile.gettempdir(), "No space left on device", "space")
