"""Floating-point operations counted from shapes: a multiplication and an addition are two."""

import math
from collections.abc import Callable
from typing import Any

import jax


def flops_of(function: Callable, *arguments: Any) -> int:
    """The operations of the convolutions and matrix products in one call; all else in a network is far less.

    Args:
        function: what jax can trace.
        arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`; nothing is computed.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    outputs = sum(math.prod(output.aval.shape) for output in equation.outvars)
    if equation.primitive.name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
        return 2 * outputs * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    assert equation.primitive.name not in ("scan", "while", "cond"), "how often its body runs is not counted"
    inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
    return sum(_of_jaxpr(each) for each in inner if hasattr(each, "eqns"))
