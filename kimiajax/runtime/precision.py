"""What convolutions and matrix products compute in. Parameters are float32 in all cases."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from kimiajax.errors import check_known

Precision = Literal["float32", "tf32", "bfloat16"]

# name -> (type of activations and of kernels as they are used, None for the parameters' own; jax's name)
_PRECISIONS: dict[str, tuple[Any, str]] = {
    "float32": (None, "float32"),
    "tf32": (None, "tensorfloat32"),
    "bfloat16": (jnp.bfloat16, "bfloat16"),
}


def compute_dtype(precision: Precision) -> Any:
    """The type of activations and of kernels as they are used; None for that of the parameters."""
    return _of(precision)[0]


def products_in(precision: Precision) -> Any:
    """A context in which what is traced computes its products so: jax by itself takes TF32 on a GPU."""
    return jax.default_matmul_precision(_of(precision)[1])


def _of(precision: str) -> tuple[Any, str]:
    check_known("precision", precision, _PRECISIONS)
    return _PRECISIONS[precision]
