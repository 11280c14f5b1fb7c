"""Array types with shapes, as in `Float[jax.Array, "b h w 3"]`: the tests check them, people read them.

A GPU image may hold the core packages only; there they are names that stand for anything.
"""

try:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
except ModuleNotFoundError:

    class _Unchecked:
        def __class_getitem__(cls, shape: object) -> type:
            return cls

    Bool = Float = Int = Shaped = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int", "Shaped", "UInt8"]
