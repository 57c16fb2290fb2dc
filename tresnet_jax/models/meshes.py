"""Keep the types of arrays consistent on a mesh with explicit or manual axes.

On such a mesh, the type of an array names the mesh axes that its own axes are split along (``AxisType.Explicit``), or
those over which it varies from device to device (``jax.shard_map`` with ``check_vma=True``). Where no mesh is used, and
with ``AxisType.Auto`` or pmap, the types name no axes, and the functions here return their arguments as they are;
`barrier` is then ``jax.lax.optimization_barrier``.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def shard_like(x: jax.Array, other: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Split an array along explicit mesh axes as `other` is, in those axes in which their lengths are equal."""
    sharding = other.sharding if isinstance(other, jax.ShapeDtypeStruct) else jax.typeof(other).sharding
    if sharding is None:
        return x
    names = [name if n == m else None for n, m, name in zip(x.shape, other.shape, sharding.spec, strict=True)]
    if not any(names):
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*names)))


def whole(x: jax.Array, ndim: int) -> NamedSharding | None:
    """Return the sharding of a sum over the axes of x that are split along explicit mesh axes; None without any.

    JAX requires it where a product sums over such axes.
    """
    sharding = jax.typeof(x).sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*[None] * ndim)) if any(sharding.spec) else None


def _varying(x: Any) -> frozenset[Any]:
    """Return the manual axes over which a value varies."""
    return jax.typeof(x).manual_axis_type.varying


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Make arrays vary over the same manual axes, those of all of them together.

    A custom backward pass computes the gradient of a parameter from the images of one device. The gradient of this cast
    adds up those of all devices.
    """
    union = frozenset[Any]().union(*map(_varying, arrays))
    return tuple(jax.lax.pcast(x, tuple(sorted(union - _varying(x), key=str)), to='varying') for x in arrays)


def barrier(tree: Any) -> Any:
    """Apply one optimisation barrier to all leaves of a tree that vary over the same manual axes.

    In JAX 0.10 a barrier over leaves of different kinds would make all of them vary.
    """
    leaves, structure = jax.tree.flatten(tree)
    axes = [_varying(leaf) for leaf in leaves]
    for kind in dict.fromkeys(axes):
        places = [i for i, varying in enumerate(axes) if varying == kind]
        for i, leaf in zip(places, jax.lax.optimization_barrier([leaves[i] for i in places]), strict=True):
            leaves[i] = leaf
    return structure.unflatten(leaves)
