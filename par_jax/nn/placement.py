"""Where arrays lie on a mesh, for use inside jitted functions; without a mesh (`jax.set_mesh`) nothing happens."""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

Tree = Any


def over_rows(x: jax.Array) -> jax.Array:
    """Shares out the first axis over all devices, where it divides: what XLA cannot tell of rows picked at random.

    Without this, every device would compute all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty or x.shape[0] % mesh.size else jax.lax.with_sharding_constraint(x, P(mesh.axis_names))


def gathered(tree: Tree) -> Tree:
    """Parameters whole on every device, where they are used: rows are shared out, and not the features of each."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree)
