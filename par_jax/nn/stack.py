"""Stacked blocks: one group of parameters with a leading layer axis, run by `lax.scan`.

Depth then costs no compile time: 48 layers compile as one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
          The last carry, and the outputs stacked along a new leading axis (of no layers, whatever it is).
        """
        graphdef, state = nnx.split(self.blocks)

        def one(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            return body(nnx.merge(graphdef, gathered(inputs[0])), carry, inputs[1])

        if any(map(_is_layers, jax.tree.leaves(state, is_leaf=_is_layers))):
            return self._one_by_one(one, carry, state, per_layer, range(self.depth)[start:stop])
        part = jax.tree.map(lambda leaf: leaf[start:stop], state)
        if self.remat != "none":
            # A scan's iterations cannot be merged, so nothing need stand in the way of merging.
            one = jax.checkpoint(one, policy=KEPT[self.remat], prevent_cse=False)
        return jax.lax.scan(one, carry, (part, per_layer))

    def _one_by_one(self, one: Callable, carry: Any, state: Any, per_layer: Any, layers: range) -> tuple[Any, Any]:
        """What `scan` gives, of `unstacked` parameters."""
        outputs = []
        for layer in layers:
            own = jax.tree.map(lambda leaf: leaf[layer], state, is_leaf=_is_layers)  # noqa: B023
            inputs = jax.tree.map(lambda leaf: leaf[layer - layers.start], per_layer)  # noqa: B023
            carry, out = one(carry, (own, inputs))
            outputs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs) if outputs else None


def unstacked(params: Any) -> Any:
    """Parameters for acting: in place of a stack's [layer, ...] arrays, tuples of each layer's own.

    The stack then runs without a loop. A loop's body first copies its layer's weights out of the stacked array, which
    a step of a few hundred tokens has no time for: on a CPU the full-size transformer takes 0.86 of the time without,
    the action head 0.55. Training keeps its loop, whose compilation does not grow with depth.

    Args:
      params: nested dicts of arrays.
    """

    def walk(node: Any, stacked: bool) -> Any:
        if isinstance(node, dict):
            return {name: walk(child, stacked or name == "blocks") for name, child in node.items()}
        return tuple(node) if stacked else node

    return walk(params, False)


def _is_layers(leaf: Any) -> bool:
    return isinstance(leaf, tuple)
