"""Whatever a reader is given, it reads it or refuses it in a line: ten thousand inputs of each kind."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import strategies as st

from faults.readers import fuzzing
from faults.readers.fuzzing import asked, fuzz
from faults.readers.images import folders_of_damaged_images, folders_of_other_things
from faults.readers.records import manifests, predictions, results, truths
from faults.readers.scans import scans_of_damaged_bytes, scans_of_other_things
from faults.readers.slides import heads_of_dicom
from faults.readers.weights import keras_files, weights_of_keras, weights_of_torch
from kimiajax.errors import UserError
from weights_convert.convert import convert

READERS = {
    "scan files of damaged bytes": scans_of_damaged_bytes,
    "scan files of other things": scans_of_other_things,
    "heads of DICOM files": heads_of_dicom,
    "manifests": manifests,
    "predictions": predictions,
    "truths": truths,
    "results": results,
    "weights of Keras": weights_of_keras,
    "weights of torch": weights_of_torch,
    "folders of damaged images": folders_of_damaged_images,
    "folders of other things": folders_of_other_things,
}


@pytest.mark.fault("readers")
@pytest.mark.parametrize("name", READERS)
def test_whatever_is_damaged_or_made_up_is_read_or_refused(folder, record_property, name):
    record_property("inputs", READERS[name](folder))


# The checker


def nothing(*arguments):
    return contextlib.nullcontext()


GUARDS = {  # of each reader one, what takes its place, and what that lets through
    "scan files of damaged bytes": ("kimiajax.data.sources.scan_file.damage_named", nothing, RuntimeError),
    "scan files of other things": ("kimiajax.data.sources.scan_file.damage_named", nothing, RuntimeError),
    "heads of DICOM files": ("kimiajax.data.sources.dicom.BROKEN", KeyError, (struct.error, IndexError)),
    "manifests": ("kimiajax.data.manifest.parse_json", json.loads, (ValueError, RecursionError)),
    "predictions": ("kimiajax.runs.predictions.quoted", repr, AssertionError),
    "truths": ("kimiajax.runs.predictions.MOST_SCANS", 2**62, (AssertionError, OverflowError)),
    "results": ("kimiajax.runs.reader.faults", lambda results: [], (KeyError, TypeError, AttributeError)),
    "weights of Keras": ("weights_convert.keras_h5.damage_named", nothing, (RuntimeError, KeyError, TypeError)),
    "weights of torch": ("weights_convert.arrays.quoted", lambda value, most=0: repr(value), AssertionError),
    "folders of damaged images": ("kimiajax.data.sources.image_files.Exception", KeyError, Exception),
    "folders of other things": ("kimiajax.data.sources.image_folder.shown", str, AssertionError),
}


@pytest.mark.fault("readers")
@pytest.mark.parametrize("name", GUARDS)
def test_a_reader_that_lacks_a_guard_is_caught(folder, monkeypatch, name):
    guard, other, caught = GUARDS[name]
    monkeypatch.setattr(guard, other, raising=False)
    with pytest.raises(caught):
        READERS[name](folder)


def refuse(text):
    raise UserError(text)


def endless():
    while True:
        pass


FORBIDDEN = {
    "another error": (lambda: {}["x"], KeyError),
    "an error of the system that names no file": (lambda: refuse_without_a_name(), OSError),
    "no file in the line": (lambda: refuse("it is broken"), AssertionError),
    "two lines": (lambda: refuse("x.h5: it is\nbroken"), AssertionError),
    "a line without end": (lambda: refuse("x.h5: " + "a" * 10**4), AssertionError),
    "no end": (endless, fuzzing.TooSlowError),
    "two gigabytes": (lambda: np.empty(2**31, np.uint8), MemoryError),
}


def refuse_without_a_name():
    raise OSError("broken")


@pytest.mark.fault("readers")
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_no_reader_may_do_is_caught(monkeypatch, what):
    read, caught = FORBIDDEN[what]
    monkeypatch.setattr(fuzzing, "SECONDS", 0.1)
    with pytest.raises(caught):
        fuzz(lambda _: asked(read, "x.h5"), st.just(0))


@pytest.mark.fault("readers")
@pytest.mark.parametrize("hole", [bytes(48), b"\1\0\0\0\0\0\0\0\xf0" + b"\xff" * 7], ids=["zeros", "a size beyond any"])
def test_a_hole_in_the_texts_of_a_weight_file_is_refused_where_hdf5_reads_for_ever(folder, hole):
    path = folder / "x.weights.h5"
    content = keras_files(folder)[2]
    place = content.index(b"GCOL") + 16
    path.write_bytes(content[:place] + hole + content[place + len(hole) :])
    with pytest.raises(
        UserError, match=r"x.weights.h5: a damaged HDF5 file \(its texts have a hole at .*fetch it again"
    ):
        convert("small", path)
