"""Convolution, group norm and resizing for pictures [N, H, W, C] and for clips [B, T, H, W, C].

The number of axes tells the two apart. A picture [H, W, C] is a clip of one frame, so a causal kernel meets the
same picture at every tap of its time axis: summed over time it is an ordinary 2D kernel, and that is how it is
applied to four axes, at a third of the cost.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Conv(nnx.Module):
    """A convolution over height and width, or causal over time as well.

    `kernel` is [kh, kw, in, out], or [kt, kh, kw, in, out] where `volumetric`. A causal kernel sees kt - 1 copies
    of the first frame before it. A kernel without a time axis treats the frames of a clip as pictures.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int | tuple[int, int, int] = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        volumetric: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the kernel.

        Args:
          features_in, features_out: channels.
          size: taps along every axis, or (time, height, width).
          stride: along every axis that the kernel has.
          padding: zeros before and after, in height and in width alike; default keeps the size at stride 1.
          volumetric: whether the kernel has a time axis.
          rngs: `params` is drawn from.
        """
        taps = (size,) * 3 if isinstance(size, int) else size
        taps = taps if volumetric else taps[1:]
        self.stride = stride
        self.padding = (taps[-1] // 2,) * 2 if padding is None else padding
        scale = math.prod(taps) * features_in
        kernel = jax.random.normal(rngs.params(), (*taps, features_in, features_out), jnp.float32)
        self.kernel = nnx.Param(kernel * scale**-0.5)
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, in] or [B, T, H, W, in] to the same with `out` channels, in the type of `x`.

        At stride 2 a volumetric kernel makes (T - 1) // 2 + 1 frames of T.
        """
        kernel = self.kernel[...]
        clip = None
        if kernel.ndim == 5 and x.ndim == 4:
            kernel = kernel.sum(0)
        elif kernel.ndim == 4 and x.ndim == 5:
            clip, x = x.shape[:2], x.reshape(-1, *x.shape[2:])
        spatial = (self.padding, self.padding)
        if x.ndim == 5:
            x = jnp.pad(x, ((0, 0), (kernel.shape[0] - 1, 0), (0, 0), (0, 0), (0, 0)), mode="edge")
            padding, layout = ((0, 0), *spatial), ("NDHWC", "DHWIO", "NDHWC")
        else:
            padding, layout = spatial, ("NHWC", "HWIO", "NHWC")
        strides = (self.stride,) * (x.ndim - 2)
        x = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), strides, padding, dimension_numbers=layout
        )
        x = x + self.bias[...].astype(x.dtype)
        return x if clip is None else x.reshape(*clip, *x.shape[1:])


class GroupNorm(nnx.Module):
    """Normalises groups of channels by their mean and variance over every axis but the first (time included)."""

    def __init__(self, features: int, groups: int, *, epsilon: float = 1e-6):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, ..., C] to the same shape and type; the statistics are float32."""
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        y = y - y.mean((1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + self.epsilon)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


def double(x: jax.Array, axis: int) -> jax.Array:
    """Twice the samples along `axis`, linear between centres, the border samples held (float, any shape)."""
    edge = [(0, 0)] * x.ndim
    edge[axis] = (1, 1)
    padded = jnp.pad(x, edge, mode="edge")
    size = x.shape[axis]
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    pairs = jnp.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def upsample_nearest(x: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., 2H, 2W, C] by repeating pixels."""
    return x.repeat(2, -3).repeat(2, -2)


def upsample_linear(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C], and [B, T, H, W, C] -> [B, 2T - 1, 2H, 2W, C].

    Linear along every axis. The first frame of a clip stays one frame; those after it are doubled among
    themselves, so that no frame looks past its own pair.
    """
    x = double(double(x, x.ndim - 3), x.ndim - 2)
    if x.ndim == 5 and x.shape[1] > 1:
        x = jnp.concatenate((x[:, :1], double(x[:, 1:], 1)), 1)
    return x
