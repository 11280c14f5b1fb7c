"""VGG16 and Inception-v3 as old and new Keras and torch write them: read to the bit, or refused."""

from contextlib import suppress

import pytest
from support.foreign import CASES, check

from kimiajax.errors import UserError
from weights_convert import keras_hold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


@pytest.mark.fault("foreign")
@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_to_the_bit_or_refused(folder, name):
    try:
        check(CASES[name], folder)
    finally:
        (folder / CASES[name]["name"]).unlink(missing_ok=True)


# The checker

WRONG = {  # what the reader would do no more, and a file that it would then read wrong
    "turn kernels": ("turn", "backend: Theano's, said at the root"),
    "transpose kernels": ("transpose", "Keras 1: th, weights alone, by its name"),
    "reorder rows": ("reorder", "order of axes: first, Flatten of Keras 2.0"),
    "ask for an order": ("_order_flattened", "order of axes: weights alone, Keras 2.0"),
    "hold epsilons": ("_hold_epsilon", "configuration: an epsilon"),
    "hold the configuration": ("_hold_described", "configuration: an activation"),
    "look at what comes last": ("_hold_output", "configuration: the last pool"),
    "look at what comes first": ("_input", "model: rescaled"),
}


@pytest.mark.fault("foreign")
@pytest.mark.parametrize("what", WRONG)
def test_a_reader_that_does_not_do_its_part_is_caught(folder, monkeypatch, what):
    name, read_wrong = WRONG[what]
    monkeypatch.setattr(keras_hold, name, lambda *arguments: None)
    with pytest.raises((AssertionError, UserError)):
        check(CASES[read_wrong], folder)
    with suppress(FileNotFoundError):
        (folder / CASES[read_wrong]["name"]).unlink()
