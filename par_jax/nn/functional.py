"""A module as pure functions over plain nested dicts of arrays, which is what jax, optax and orbax know."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


class Functional:
    """`init(key) -> params` and `bind(params) -> module`, for one way of building a module.

    Args:
      make: builds the module from random number generators.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        self._graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""
        return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key))))

    def bind(self, params: Params) -> Any:
        """The module with these parameters; to be called inside a jitted function."""
        return nnx.merge(self._graphdef, params)
