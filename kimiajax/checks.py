"""Checks of what a user hands over, at the borders: each refuses in one line that names the argument and the place.

A tracer of JAX has a shape and a type and no values yet, so that values are checked of arrays alone.
"""

import math
import sys
from collections.abc import Callable, Collection
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from kimiajax.errors import UserError
from kimiajax.text import first_line, quoted

T = TypeVar("T")
MOST_SEED = 2**32 - 1  # above which JAX would take another one for it
AT_ONCE = 2**22  # values that are looked at at a time
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None"}


def is_traced(array: Any) -> bool:
    """Returns whether an array is one of JAX's that has no values yet, under `jit`, `vmap` or `grad`."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def array_of(name: str, given: Any) -> Any:
    """Returns an array of real numbers or truth values: JAX's and mapped files as they are, all else as NumPy's.

    Raises:
        UserError: anything else, numbers in rows of several lengths, or values that are masked.
    """
    jax = sys.modules.get("jax")
    if isinstance(given, np.ma.MaskedArray):
        raise UserError(f"{name}: a masked array, whose gaps would count as numbers; give a plain array without gaps")
    if not isinstance(given, np.memmap) and (jax is None or not isinstance(given, jax.Array)):
        try:
            given = np.asarray(given)
        except Exception as error:  # whatever an object of another library raises
            raise UserError(
                f"{name}: no array ({type(error).__name__}: {first_line(error)}); give NumPy's or JAX's"
            ) from error
    if not (getattr(given.dtype, "kind", None) in tuple("fiub") or given.dtype.name == "bfloat16"):
        raise UserError(f"{name}: an array of {given.dtype}; give one of real numbers")
    return given


def on_host(array: Any) -> Any:
    """An array as NumPy's; one that is mapped from a file stays as it is."""
    return array if isinstance(array, np.memmap) else np.asarray(array)


def refuse_where(name: str, array: Any, wrong: Callable[[np.ndarray], np.ndarray], why: str) -> None:
    """Raises UserError with the first value, and its place, for which `wrong` is true; a tracer passes.

    Args:
        name: of the argument.
        array: [n ...], looked at in parts.
        wrong: values -> which of them are wrong.
        why: what is wrong and what to do, after "labels: nan at [3, 0] ".
    """
    if is_traced(array):
        return
    rows = max(1, AT_ONCE // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        part = np.asarray(array[start : start + rows])
        bad = wrong(part)
        if bad.any():
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            shown = ", ".join(str(int(each) + (start if axis == 0 else 0)) for axis, each in enumerate(place))
            raise UserError(f"{name}: {part[place]} at [{shown}] {why}")


def check_finite(name: str, array: Any, remedy: str = "check the weights and the data") -> None:
    """Raises UserError for NaN and infinity, with the first place; a tracer passes."""
    if getattr(array.dtype, "kind", None) not in tuple("iub"):
        refuse_where(name, array, lambda part: ~np.isfinite(part), f"is not finite (NaN or infinity); {remedy}")


def rows_of(name: str, given: Any, width: int | None = None) -> Any:
    """Returns features, or barcodes, as an array [n d] in the type that they have.

    Args:
        name: of the argument.
        given: one row a patch.
        width: what d must be.

    Raises:
        UserError: another shape, or no numbers.
    """
    array = array_of(name, given)
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(f"{name}: an array of shape {_shape(array)}; give [n d], one row of features a patch")
    if width not in (None, array.shape[1]):
        raise UserError(
            f"{name}: {array.shape[1]} values a row where {width} are needed; take both from one block of one network"
        )
    return array


def features_of(name: str, given: Any, width: int | None = None) -> Any:
    """Returns `rows_of` that are finite.

    Raises:
        UserError: as `rows_of`, or numbers that are not finite.
    """
    array = rows_of(name, given, width)
    check_finite(name, array)
    return array


def whole_numbers_of(name: str, given: Any, count: int | None = None, of: str = "inputs") -> Any:
    """Returns whole numbers as an array [n] of a signed type; floats that are whole are taken for these.

    Args:
        name: of the argument.
        given: one for each input.
        count: how many there must be.
        of: what they are of, for a message.

    Raises:
        UserError: another shape or length, truth values, fractions or NaN.
    """
    array = array_of(name, given)
    if array.ndim != 1:
        raise UserError(f"{name}: an array of shape {_shape(array)}; give [n], one whole number for each of the {of}")
    if count is not None and len(array) != count:
        raise UserError(f"{len(array)} {name} for {count} {of}; give one for each")
    return _signed(name, array)


def labels_of(name: str, given: Any, count: int | None = None, classes: int | None = None, of: str = "inputs") -> Any:
    """Returns labels as `whole_numbers_of` gives them, each the number of a class.

    Args:
        name, count, of: as there.
        given: the class of each input, from 0.
        classes: how many classes there are; without it they may have gaps and go up to 2**31 - 1.

    Raises:
        UserError: as there, or numbers of no class.
    """
    array = whole_numbers_of(name, given, count, of)
    if is_traced(array) or not len(array):
        return array
    low, high, most = int(array.min()), int(array.max()), 2**31 - 1 if classes is None else classes - 1
    if low < 0 or high > most:
        values = np.asarray(array)
        place = int(np.argmax((values < 0) | (values > most)))
        among = "" if classes is None else f"with {classes} classes "
        raise UserError(
            f"{name} go from {low} to {high}; {among}{values[place]} at [{place}] is outside 0 to {most}; number the "
            "classes from 0"
        )
    return array


def _signed(name: str, array: Any) -> Any:
    """An array of whole numbers, or of floats that are whole, in a signed type."""
    remedy = "give whole numbers, of classes from 0"
    if array.dtype.kind == "b":
        raise UserError(f"{name}: truth values; {remedy}")
    if array.dtype.kind not in "iu":
        if is_traced(array):
            raise UserError(f"{name}: {array.dtype}; {remedy}")
        why = f"is no whole number; {remedy}"
        refuse_where(name, array, lambda part: ~(np.isfinite(part) & (part == np.floor(part))), why)
    if array.dtype.kind == "i" or is_traced(array):
        return array
    refuse_where(name, array, lambda part: np.abs(part) >= 2.0**53, "is too large for a number; count from 0")
    return np.asarray(array).astype(np.int64)


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Returns a whole number from `least` to `most` as Python's.

    Raises:
        UserError: it is none.
    """
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"{name} {quoted(value)}: must be a whole number, {bounds}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise UserError(f"{name} {number}: must be {bounds}")
    return number


def positive(name: str, value: Any) -> float:
    """Returns a number above 0, and finite, as Python's.

    Raises:
        UserError: it is none.
    """
    if not _is_finite(value) or value <= 0:
        raise UserError(f"{name} {quoted(value)}: must be above 0 and finite")
    return float(value)


def share(name: str, value: Any) -> float:
    """Returns a number in [0, 1) as Python's.

    Raises:
        UserError: it is none.
    """
    if not _is_finite(value) or not 0 <= value < 1:
        raise UserError(f"{name} {quoted(value)}: must be in [0, 1)")
    return float(value)


def names_of(name: str, given: Any) -> tuple[str, ...]:
    """Returns names as a tuple.

    Raises:
        UserError: one text in place of several, or what is no text.
    """
    if isinstance(given, str):
        raise UserError(f"{name} are a sequence: write ({given!r},)")
    if not isinstance(given, Collection) or not all(isinstance(each, str) for each in given):
        raise UserError(f"{name} {quoted(given)}: must be a sequence of names")
    return tuple(given)


def kind_of(name: str, given: Any, kind: type[T], remedy: str) -> T:
    """Returns what is given, which must be of a kind.

    Raises:
        UserError: it is of another.
    """
    if not isinstance(given, kind):
        raise UserError(f"{name}: {quoted(given)} is no {kind.__name__}; {remedy}")
    return given


def path_of(name: str, given: Any) -> Path:
    """Returns a path, which may be given as text.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(given, str | Path) or not str(given):
        raise UserError(f"{name} {quoted(given)}: must be a path")
    return Path(given)


def check_fields(settings: Any, named: Callable[[str], str] = str) -> None:
    """Raises UserError for the first field of a dataclass that is none of what its hint allows; no number may be NaN.

    Args:
        settings: the dataclass.
        named: a field's name -> how a message calls it.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not _fits(value, hint):
            raise UserError(f"{named(field.name)} {quoted(value)}: must be {_told(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is tuple:
        inner = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    return not isinstance(hint, type) or isinstance(value, hint)


def _told(hint: Any) -> str:
    """A hint in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType, Literal):
        parts = [repr(each) if origin is Literal else _told(each) for each in inner]
        return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]
    if origin is tuple:
        return f"a tuple, each {_told(inner[0])}"
    return WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _shape(array: Any) -> str:
    return f"[{' '.join(map(str, array.shape))}]"
