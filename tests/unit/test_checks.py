"""What is handed over at the borders: refused in one line with the argument and the place, or taken as it is meant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kimiajax import checks
from kimiajax.errors import UserError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def changed(array, place, value):
    array = np.array(array, dtype=np.result_type(array, type(value)))
    array[place] = value
    return array


def refused(message, call, *given, **options):
    with pytest.raises(UserError, match=message) as caught:
        call(*given, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(ROWS, (2, 1), np.nan), r"x: nan at \[2, 1\] is not finite"),
        (changed(ROWS, (3, 0), -np.inf), r"x: -inf at \[3, 0\] is not finite"),
        (jnp.asarray(changed(ROWS, (1, 2), np.inf), jnp.bfloat16), r"x: inf at \[1, 2\] is not finite"),
        (ROWS[0], r"x: an array of shape \[3\]; give \[n d\]"),
        (ROWS[None], r"shape \[1 4 3\]"),
        (ROWS[:, :0], r"shape \[4 0\]"),
        (ROWS[:, :2], "2 values a row where 3 are needed"),
        (ROWS.astype(object), "an array of object"),
        (ROWS.astype(str), "an array of <U"),
        (ROWS.astype(complex), "an array of complex128"),
        ([[1.0], [1.0, 2.0]], "no array"),
        (np.ma.masked_greater(ROWS, 5), "a masked array, whose gaps would count"),
        (None, "an array of object"),
        ("features.npy", "an array of <U"),
    ],
)
def test_features_that_would_become_a_number_all_the_same_are_refused(given, message):
    refused(message, checks.features_of, "x", given, 3)


@pytest.mark.parametrize(
    "given", [ROWS, ROWS.astype(np.float64), ROWS.astype(np.int64), ROWS.tolist(), jnp.asarray(ROWS), ROWS[:0]]
)
def test_features_of_any_number_are_taken(given):
    np.testing.assert_array_equal(checks.features_of("x", given, 3), given)


def test_a_mapped_file_is_not_read_into_memory_and_is_looked_at_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "AT_ONCE", 6)
    np.save(tmp_path / "x.npy", changed(ROWS, (3, 2), np.nan))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(checks.rows_of("x", mapped), np.memmap)
    assert isinstance(checks.on_host(mapped), np.memmap)
    refused(r"nan at \[3, 2\]", checks.features_of, "x", mapped)


LABELS = np.array([0, 1, 3, 1])  # with a gap


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LABELS[:3], "3 labels for 4 inputs; give one for each"),
        (LABELS[:, None], r"an array of shape \[4 1\]; give \[n\]"),
        (1, r"an array of shape \[\]"),
        (changed(LABELS, 2, -1), r"labels go from -1 to 1; with 4 classes -1 at \[2\] is outside 0 to 3; number the"),
        (changed(LABELS, 3, 4), r"4 at \[3\] is outside 0 to 3"),
        (changed(LABELS, 1, 2**40), r"1099511627776 at \[1\] is outside"),
        (changed(LABELS.astype(np.uint64), 0, np.uint64(2**63 + 5)), r"9223372036854775813 at \[0\] is too large"),
        (LABELS + 0.5, r"0.5 at \[0\] is no whole number"),
        (changed(LABELS, 2, np.nan), r"nan at \[2\] is no whole number"),
        (changed(LABELS, 2, np.inf), r"inf at \[2\] is no whole number"),
        (changed(LABELS, 2, 2.0**60), r"at \[2\] is too large"),
        (LABELS > 0, "labels: truth values; give whole numbers"),
        (LABELS.astype(str), "an array of <U"),
        (LABELS.astype(object), "an array of object"),
    ],
)
def test_labels_that_are_not_one_class_for_each_are_refused_with_the_place(given, message):
    refused(message, checks.labels_of, "labels", given, 4, 4)


@pytest.mark.parametrize("kind", ["int8", "int64", "uint8", "uint64", "float32", "float64", list, jnp.asarray])
def test_labels_that_are_whole_are_taken_in_a_signed_type(kind):
    given = kind(LABELS) if callable(kind) else LABELS.astype(kind)
    labels = checks.labels_of("labels", given, 4)
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels, LABELS)


def test_a_tracer_is_checked_by_its_shape_and_type_and_not_by_values():
    passed = jax.jit(lambda x, y: (checks.features_of("x", x, 3), checks.labels_of("y", y, 4, 2)))(
        changed(ROWS, (0, 0), np.nan), LABELS
    )
    np.testing.assert_array_equal(passed[1], LABELS)
    refused(r"an array of shape \[3\]", jax.jit(lambda x: checks.features_of("x", x)), ROWS[0])
    refused("y: float32", jax.jit(lambda y: checks.labels_of("y", y)), LABELS.astype(np.float32))
    refused("truth values", jax.jit(lambda y: checks.labels_of("y", y)), LABELS > 0)


@pytest.mark.parametrize("value", [float("nan"), 1.5, 2.0, "3", None, True, [3], np.array([3])])
def test_what_is_no_whole_number_is_refused(value):
    refused("n .*: must be a whole number, 1 or more", checks.whole, "n", value, 1)


def test_numbers_out_of_their_range_are_refused_and_numpys_are_taken():
    assert checks.whole("n", np.uint8(3)) == 3
    refused("n 0: must be 1 or more", checks.whole, "n", 0, 1)
    refused("n 256: must be from 0 to 255", checks.whole, "n", np.int64(256), 0, 255)
    for value in (0, -1.0, float("nan"), float("inf"), "1", None, True):
        refused("c .*: must be above 0 and finite", checks.positive, "c", value)
    for value in (-0.1, 1, float("nan"), "0.5", None):
        refused(r"s .*: must be in \[0, 1\)", checks.share, "s", value)


def test_a_text_in_place_of_names_or_a_path_in_place_of_nothing_is_refused():
    assert checks.names_of("taps", ["a", "b"]) == ("a", "b")
    refused(r"taps are a sequence: write \('mixed9',\)", checks.names_of, "taps", "mixed9")
    refused("taps .*: must be a sequence of names", checks.names_of, "taps", [1])
    refused("taps None: must be a sequence of names", checks.names_of, "taps", None)
    assert checks.path_of("out", "a/b") == Path("a/b")
    for value in (None, 3, "", ["a"]):
        refused("out .*: must be a path", checks.path_of, "out", value)


@dataclass
class Settings:
    count: Any = 1
    share: Any = 0.5
    way: Any = "auto"
    rows: Any = ("a",)
    draw: Any = None
    here: Any = None
    fresh: Any = False


HINTS = {
    "count": int,
    "share": float,
    "way": Literal["auto", "plain"],
    "rows": tuple[str, ...],
    "draw": int | Literal["all"] | None,
    "here": Path | None,
    "fresh": bool,
}


@pytest.fixture
def settings(monkeypatch):
    """Whose hints are those, though no type checker looks at its fields."""
    monkeypatch.setattr(checks, "get_type_hints", lambda kind: HINTS)
    return Settings


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("count", 1.0, "a whole number"),
        ("count", True, "a whole number"),
        ("share", float("nan"), "a number"),
        ("share", "0.5", "a number"),
        ("way", "fast", "'auto' or 'plain'"),
        ("way", ["auto"], "'auto' or 'plain'"),
        ("rows", "a", "a tuple, each text"),
        ("rows", ("a", 1), "a tuple, each text"),
        ("draw", "some", "a whole number, 'all' or None"),
        ("here", 3, "a Path or None"),
        ("fresh", 1, "True or False"),
    ],
)
def test_a_field_of_another_type_than_its_hint_is_refused_by_its_name(settings, field, value, told):
    checks.check_fields(settings())
    refused(f"--{field} .*: must be {told}", checks.check_fields, settings(**{field: value}), "--{}".format)


@pytest.mark.parametrize(
    ("field", "value"), [("count", np.int64(3)), ("share", 1), ("draw", "all"), ("here", Path("a"))]
)
def test_a_field_of_its_hint_is_taken(settings, field, value):
    checks.check_fields(settings(**{field: value}))
