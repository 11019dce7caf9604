"""Pytrees as arrays by name, as they stand in checkpoints."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Tree = Any


def flatten(tree: Tree) -> dict[str, Any]:
    """A pytree's leaves by name: dataclass fields, keys and indices joined with `/`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict:
    """Nested dicts from names joined with `/`; parts made of digits become integers, as in flax's lists."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in name.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def checksum(array: np.ndarray) -> int:
    """Sum of an array's bytes as 32-bit words, modulo 2**64: catches any damaged word, at memory speed."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = data[: len(data) // 4 * 4].view(np.uint32)
    tail = int(data[len(words) * 4 :].sum(dtype=np.uint64))
    return (int(words.sum(dtype=np.uint64)) + tail) % 2**64


def string_keys(tree: Any) -> Any:
    """Nested dicts with every key as a string, as orbax stores them."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): string_keys(value) for key, value in tree.items()}
