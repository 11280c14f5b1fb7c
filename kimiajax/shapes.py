"""Array types with shapes, as in `Float[jax.Array, "b h w 3"]`: the tests check them, people read them.

A GPU image may hold the core packages only. Annotations are never evaluated there, so names suffice.
"""

try:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
except ModuleNotFoundError:
    Bool = Float = Int = Shaped = UInt8 = None

__all__ = ["Bool", "Float", "Int", "Shaped", "UInt8"]
