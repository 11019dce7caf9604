"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear layers whose names match. Knows names and arrays.

A top-level part of the model that holds an adapter is frozen but for its adapters; the other parts are trained whole.
"""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from par_jax.config import LoRAConfig
from par_jax.errors import UserError
from par_jax.nn.layers import Linear
from par_jax.trees import flatten, nest

Tree = Any
A, B = "lora_a", "lora_b"


def attach(module: nnx.Module, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    """Gives the targets their adapters; B = 0, so that nothing changes yet.

    Args:
      module: changed in place; blocks of a stack have a leading layer axis.
      config: rank 0 changes nothing.

    Raises:
      UserError: no linear layer's name matches, or `targets` is no regular expression.
    """
    if not config.rank:
        return
    layers = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(module) if isinstance(layer, Linear)}
    for name in matching(layers, config.targets):
        layer = layers[name]
        *lead, rows, columns = layer.kernel[...].shape
        draw = nnx.initializers.normal(rows**-0.5)
        setattr(layer, A, nnx.Param(draw(rngs.params(), (*lead, rows, config.rank))))
        setattr(layer, B, nnx.Param(jnp.zeros((*lead, config.rank, columns))))
        layer.adapter = config.alpha / config.rank


def matching(names: Any, targets: str) -> list[str]:
    """The names in which the regular expression is found.

    Raises:
      UserError: there are none, or it is no regular expression.
    """
    try:
        found = [name for name in names if re.search(targets, name)]
    except re.error as error:
        raise UserError(f"the LoRA targets {targets!r} are no regular expression: {error}") from error
    if not found:
        shown = ", ".join(sorted(names)[:4])
        raise UserError(f"the LoRA targets {targets!r} match no linear layer; their names are like {shown}")
    return found


def split(params: Tree) -> tuple[Tree, Tree]:
    """Parameters (nested dicts) to the trained ones and the frozen ones; without adapters nothing is frozen."""
    flat = flatten(params)
    adapted = {name.split("/")[0] for name in flat if is_adapter(name)}
    trained = {name for name in flat if is_adapter(name) or name.split("/")[0] not in adapted}
    frozen = {name: leaf for name, leaf in flat.items() if name not in trained}
    return nest({name: leaf for name, leaf in flat.items() if name in trained}), nest(frozen)


def adapters(params: Tree) -> dict[str, np.ndarray]:
    """The adapters alone, by name, float32."""
    return {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items() if is_adapter(name)}


def merge(params: Tree, config: LoRAConfig) -> Tree:
    """Parameters of the model without adapters that computes the same: each kernel takes its adapter in."""
    flat = flatten(params)
    merged = flatten(bare(params))
    for name in filter(lambda name: name.endswith(f"/{A}"), flat):
        kernel = name.removesuffix(A) + "kernel"
        change = flat[name].astype(jnp.float32) @ flat[name.removesuffix(A) + B].astype(jnp.float32)
        change = change * (config.alpha / config.rank)
        merged[kernel] = (merged[kernel].astype(jnp.float32) + change).astype(merged[kernel].dtype)
    return nest(merged)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return name.endswith((f"/{A}", f"/{B}"))


def bare(params: Tree) -> Tree:
    """Parameters without the adapters."""
    return nest({name: leaf for name, leaf in flatten(params).items() if not is_adapter(name)})
