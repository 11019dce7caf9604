"""Winograd's convolution with 3 x 3 taps (Lavin & Gray 2016, arXiv 1509.09308: F(4 x 4, 3 x 3)).

Tiles of 6 x 6 inputs, which overlap by two, and the taps become 36 numbers each. These are multiplied number by number,
36 matrix products over the channels, and 36 sums become 4 x 4 outputs: a quarter of the multiplications. It pays where
the channels are many and no library below does it: cuDNN chooses by itself, XLA for a CPU does not know it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4
# Where the polynomials are evaluated, beside infinity: in float32 these err 4 times as much as plain sums do, the usual
# 0, 1, -1, 2, -2 twice that.
_POINTS = np.array((0.0, 0.75, -0.75, 1.5, -1.5))


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Toom and Cook's matrices: 6 numbers of inputs [6, 6] and of taps [6, 3], and outputs of their products [4, 6]."""
    others = [np.delete(_POINTS, i) for i in range(len(_POINTS))]
    inputs = [np.append(np.poly(zeros)[::-1], 0.0) for zeros in others] + [np.poly(_POINTS)[::-1]]
    scale = [np.prod(point - zeros) for point, zeros in zip(_POINTS, others, strict=True)]
    taps = np.vstack((np.vander(_POINTS, 3, increasing=True) / np.array(scale)[:, None], np.eye(3)[-1]))
    outputs = np.vstack((np.vander(_POINTS, TILE, increasing=True), np.eye(TILE)[-1])).T
    return np.array(inputs), taps, outputs


_INPUTS, _TAPS, _OUTPUTS = _transforms()


def fits(height: int, width: int) -> bool:
    """Whether a picture is made of whole tiles."""
    return height % TILE == 0 and width % TILE == 0


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution that keeps height and width: zeros all around, stride 1.

    Args:
      x: [N, H, W, in] float32; height and width `fits`.
      kernel: [3, 3, in, out] float32.

    Returns:
      [N, H, W, out].
    """
    n, height, width, features = x.shape
    h, w = height // TILE, width // TILE
    x = jnp.pad(x, ((0, 0), (1, TILE - 1), (1, TILE - 1), (0, 0)))
    rows = jnp.stack(_mixed(_INPUTS, _overlapping(x, 1)))
    # Fused into what follows, every number of `rows` would be made six times.
    rows = jax.lax.optimization_barrier(rows)
    tiles = jnp.stack(_mixed(_INPUTS, _overlapping(rows, 3)), 1)
    half = jnp.stack(_mixed(_TAPS, list(kernel)))
    taps = jnp.stack(_mixed(_TAPS, [half[:, i] for i in range(3)]), 1)
    products = jnp.einsum("pti,pio->pto", tiles.reshape(36, -1, features), taps.reshape(36, features, -1))
    products = products.reshape(6, 6, n, h, w, -1)
    made = [jnp.stack(_mixed(_OUTPUTS, list(part)), 3) for part in _mixed(_OUTPUTS, list(products))]
    return jnp.stack(made, 2).reshape(n, height, width, -1)


def _overlapping(x: jax.Array, axis: int) -> list[jax.Array]:
    """Along an axis of 4 (T + 1) numbers: number r = 0 .. 5 of T tiles that begin 4 apart, 6 arrays."""
    tiles = jnp.moveaxis(x.reshape(*x.shape[:axis], -1, TILE, *x.shape[axis + 1 :]), axis + 1, 0)
    last = x.shape[axis] // TILE
    cut = [jax.lax.slice_in_dim(part, 0, last - 1, axis=axis) for part in tiles]
    return cut + [jax.lax.slice_in_dim(part, 1, last, axis=axis) for part in tiles[:2]]


def _mixed(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Each row's weighted sum of arrays."""
    return [sum(weight * part for weight, part in zip(row.tolist(), parts, strict=True) if weight) for row in matrix]
