"""Stacked blocks: one group of parameters with a leading layer axis, run by `lax.scan`.

Depth then costs no compile time: 48 layers compile as one.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from par_jax.nn.placement import gathered

# What the backward pass finds of a block, by the name of what it computes again (`TrainConfig.remat`). "dots" keeps
# the products with weights; attention's own, which grow with the square of the tokens, are computed again.
KEPT: dict[str, Callable[..., bool]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`depth` blocks of one kind.

    Args:
      make: builds one block from random number generators.
      remat: name in `KEPT`, of every `scan`.

    Raises:
      ValueError: an unknown `remat`.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, remat: str = "none", rngs: nnx.Rngs):
        if remat not in KEPT:
            raise ValueError(f"unknown remat {remat!r}: choose one of {', '.join(KEPT)}")
        self.depth, self.remat = depth, remat
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
    ) -> tuple[Any, Any]:
        """Runs layers `start` .. `stop`: `body(block, carry, inputs) -> (carry, outputs)`.

        Args:
          per_layer: pytree with a leading axis of `stop - start`, sliced layer by layer.

        Returns:
          The last carry, and the outputs stacked along a new leading axis.
        """
        graphdef, state = nnx.split(self.blocks)
        part = jax.tree.map(lambda leaf: leaf[start:stop], state)

        def one(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            return body(nnx.merge(graphdef, gathered(inputs[0])), carry, inputs[1])

        if self.remat != "none":
            # A scan's iterations cannot be merged, so nothing need stand in the way of merging.
            one = jax.checkpoint(one, policy=KEPT[self.remat], prevent_cse=False)
        return jax.lax.scan(one, carry, (part, per_layer))
