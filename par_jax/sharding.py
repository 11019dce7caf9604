"""Many devices: a mesh of two axes, and one table that says which arrays are cut along which.

A batch's rows are shared out over all devices of the mesh. Along `fsdp` the large parameters are cut too, with the
optimizer's moments and the moving average (ZeRO, arXiv 1910.02054); along `data` every device group holds them all.
XLA puts in the communication.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from par_jax.errors import UserError
from par_jax.nn import placement
from par_jax.trees import flatten

Tree = Any

AXES = ("data", "fsdp")
ROWS = P(AXES)

# The first expression that is found in an array's name decides. Kernels are [in, out], stacked ones [layer, in, out].
RULES: tuple[tuple[str, P], ...] = (
    (r"(^|/)(step|count|key)$", P()),
    (r"(^|/)((post_)?quant_conv|encoder|decoder)/", P()),  # the frame VAE: a few million parameters
    (r"/blocks/(.*/)?kernel$", P(None, None, "fsdp")),
    (r"(^|/)head/kernel$", P("fsdp")),  # an action has too few numbers to be cut
    (r"(^|/)kernel$", P(None, "fsdp")),
    (r"(^|/)(bias|scale|position|begin|mask_token|table|ahead_position|ahead_unknown|lora_a|lora_b)$", P()),
)


def make_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `--mesh=data:4,fsdp:2` asks for; an axis that is not named has size 1.

    Args:
      text: axes and their sizes, in any order.
      devices: all of them by default. Those of one process are neighbours, so that its rows of a batch are, too.

    Raises:
      UserError: the text is malformed, names an unknown axis, or asks for another number of devices than there are.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in AXES and size:
            raise UserError(f"--mesh={text}: unknown axis {axis!r}; the axes are {' and '.join(AXES)}")
        if not size.isdecimal() or int(size) < 1 or axis in sizes:
            raise UserError(f"--mesh={text} is no mesh: write each axis once with its size, as in data:4,fsdp:2")
        sizes[axis] = int(size)
    shape = [sizes.get(axis, 1) for axis in AXES]
    there = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    if np.prod(shape) != len(there):
        raise UserError(
            f"--mesh={text} wants {np.prod(shape)} devices, and there are {len(there)} ({there[0].platform}): "
            "make the product of its sizes their number"
        )
    return Mesh(np.array(there).reshape(shape), AXES)


def check_rows(rows: int, mesh: Mesh | None, parts: int = 1) -> None:
    """Makes sure that a batch divides into `parts` parts whose rows divide over the mesh.

    Raises:
      UserError: it does not.
    """
    devices = 1 if mesh is None else mesh.size
    if rows % (parts * devices):
        raise UserError(
            f"a batch of {rows} rows does not divide into {parts} parts over {devices} devices: "
            f"give a --batch that is a multiple of {parts * devices}, or another --accumulate or --mesh"
        )


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Where each array of a training state or of parameters lies, by `RULES`.

    Raises:
      ValueError: no rule matches an array's name.
      UserError: an array does not divide over the mesh.
    """
    made = [NamedSharding(mesh, _spec(name, leaf.shape, mesh)) for name, leaf in flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), made)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    spec = next((spec for pattern, spec in RULES if re.search(pattern, name)), None)
    if spec is None:
        raise ValueError(f"no rule of par_jax.sharding.RULES matches {name}")
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise UserError(
                f"{name} {list(shape)} does not divide into {mesh.shape[axis]} along {axis}: give --mesh a smaller one"
            )
    return spec


def place(tree: Tree, mesh: Mesh | None) -> Tree:
    """A training state or parameters on their devices; every process gives the whole arrays, or placed ones.

    Raises:
      ValueError, UserError: as `shardings`.
    """
    if mesh is None:
        return jax.device_put(tree)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings(tree, mesh))


def pinned(tree: Tree, mesh: Mesh | None) -> Tree:
    """The same arrays, held to their places; for use inside a jitted function."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def spread(batch: Tree, mesh: Mesh | None, parts: int = 1) -> Tree:
    """A batch over the mesh; every process gives its own rows, [B / processes, ...] each.

    Raises:
      UserError: as `check_rows`.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if mesh is None:
        check_rows(rows, mesh, parts)
        return batch
    check_rows(rows * jax.process_count(), mesh, parts)
    where = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, np.asarray(leaf)), batch)


def cut(batch: Tree, parts: int, mesh: Mesh | None) -> Tree:
    """Leaves [B, ...] to [parts, B / parts, ...]: every `parts`-th row, so that no row leaves its device."""
    made = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
    return made if mesh is None else jax.lax.with_sharding_constraint(made, NamedSharding(mesh, P(None, *ROWS)))


def under(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """The context in which `par_jax.nn.placement` knows the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def gathered(params: Tree) -> Tree:
    """Parameters whole on every device, but those of stacked blocks, which `Stack` gathers layer by layer.

    For use inside a jitted function.
    """
    leaves = [leaf if "/blocks/" in name else placement.gathered(leaf) for name, leaf in flatten(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
