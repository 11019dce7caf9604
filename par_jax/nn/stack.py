"""Stacked blocks: one group of parameters with a leading layer axis, run by `lax.scan`.

Depth then costs no compile time: 48 layers compile as one.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


class Stack(nnx.Module):
    """`depth` blocks of one kind.

    Args:
      make: builds one block from random number generators.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs):
        self.depth = depth
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        keys = jax.random.split(rngs.params(), depth)
        self.blocks = nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys))

    def block(self, index: int) -> nnx.Module:
        """One layer."""
        graphdef, state = nnx.split(self.blocks)
        return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], state))

    def scan(
        self,
        body: Callable[[nnx.Module, Any, Any], tuple[Any, Any]],
        carry: Any,
        per_layer: Any = None,
        *,
        start: int = 0,
        stop: int | None = None,
        remat: bool = False,
    ) -> tuple[Any, Any]:
        """Runs layers `start` .. `stop`: `body(block, carry, inputs) -> (carry, outputs)`.

        Args:
          per_layer: pytree with a leading axis of `stop - start`, sliced layer by layer.
          remat: recompute each block in the backward pass instead of keeping its activations.

        Returns:
          The last carry, and the outputs stacked along a new leading axis.
        """
        graphdef, state = nnx.split(self.blocks)
        part = jax.tree.map(lambda leaf: leaf[start:stop], state)

        def one(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            return body(nnx.merge(graphdef, inputs[0]), carry, inputs[1])

        return jax.lax.scan(jax.checkpoint(one) if remat else one, carry, (part, per_layer))
