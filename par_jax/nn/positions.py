"""Where a token is: sin-cos tables added to it, rotary angles for its queries and keys (as NOVA lays them out)."""

import jax
import jax.numpy as jnp
import numpy as np


def sincos_2d(height: int, width: int, dim: int) -> np.ndarray:
    """Absolute positions of a grid's cells: [height * width, dim] float32.

    The four quarters of the last axis are sine and cosine of the column, then of the row.
    """
    frequency = 1.0 / 10000.0 ** (np.arange(dim // 4, dtype=np.float32) / (dim // 4))
    rows, columns = np.mgrid[:height, :width]
    column, row = (np.outer(axis.reshape(-1), frequency) for axis in (columns, rows))
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1).astype(np.float32)


def sincos_1d(values: jax.Array) -> jax.Array:
    """Numbers [...] float32 as 128 sines and 128 cosines: [..., 256] float32."""
    frequency = 1.0 / 10000.0 ** (np.arange(128, dtype=np.float32) / 128)
    angles = values[..., None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary_sizes(head_dim: int) -> tuple[int, int, int]:
    """How a head's width is shared among time, rows and columns: an eighth, and half of the rest each.

    Odd shares take a pair more than they fill. Where that is too many for the head's width, which NOVA's models
    never meet, rows and columns give way.
    """
    time = head_dim // 8
    space = (head_dim - time) // 2
    if -(-time // 2) + 2 * -(-space // 2) == head_dim // 2:
        return time, space, space
    space -= space % 2
    return head_dim - 2 * space, space, space


def frequencies(size: int, theta: float) -> np.ndarray:
    """Angular frequencies of `size` rotated components: [ceil(size / 2)] float32."""
    return (1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)).astype(np.float32)


def frame_angles(time: jax.Array, height: int, width: int, head_dim: int, theta: float) -> jax.Array:
    """Rotary angles of one frame's tokens at each time.

    Args:
      time: [...] float32, in packages.

    Returns:
      [..., height * width, head_dim // 2] float32.
    """
    sizes = rotary_sizes(head_dim)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    shape = (*time.shape, height * width)
    parts = [
        jnp.broadcast_to(time[..., None, None] * frequencies(sizes[0], theta), (*shape, (sizes[0] + 1) // 2)),
        jnp.broadcast_to(np.outer(rows, frequencies(sizes[1], theta)), (*shape, (sizes[1] + 1) // 2)),
        jnp.broadcast_to(np.outer(columns, frequencies(sizes[2], theta)), (*shape, (sizes[2] + 1) // 2)),
    ]
    return jnp.concatenate(parts, axis=-1)


def action_angles(time: jax.Array, chunk: int, head_dim: int, theta: float, action_theta: float) -> jax.Array:
    """Rotary angles of a chunk's tokens: time runs L times finer than for frames, and the place in the chunk
    turns the components that hold a frame's rows, with a base of its own (paper section 4.3: distinct frequencies).

    Keeping one unit of time for both kinds makes every attention score depend on time differences only.

    Args:
      time: [...] float32, in packages: that of the frame which the chunk leads to.

    Returns:
      [..., chunk, head_dim // 2] float32.
    """
    sizes = rotary_sizes(head_dim)
    place = np.arange(chunk, dtype=np.float32)
    fine = time[..., None] + (place + 1 - chunk) / chunk
    shape = (*time.shape, chunk)
    parts = [
        fine[..., None] * frequencies(sizes[0], theta),
        jnp.broadcast_to(np.outer(place, frequencies(sizes[1], action_theta)), (*shape, (sizes[1] + 1) // 2)),
        jnp.zeros((*shape, (sizes[2] + 1) // 2), jnp.float32),
    ]
    return jnp.concatenate(parts, axis=-1)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns neighbouring pairs of components.

    Args:
      x: [..., S, H, D] queries or keys.
      angles: [..., S, D // 2] float32.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
