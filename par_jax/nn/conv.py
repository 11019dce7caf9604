"""Convolution, group norm and resizing for pictures [N, H, W, C] and for clips [B, T, H, W, C].

The number of axes tells the two apart. A picture is a clip of one frame, so a causal kernel meets the same
picture at every tap of its time axis: summed over time it is an ordinary 2D kernel, and that is how it is
applied to four axes, at a third of the cost.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from par_jax.nn import winograd

# From this product of channels, in and out, on does a CPU gain by Winograd's way.
_MANY_CHANNELS = 128 * 256


@functools.partial(jax.jit, static_argnums=3)
def _block(key: jax.Array, index: jax.Array, deviation: jax.Array, size: int) -> jax.Array:
    return deviation * jax.random.normal(jax.random.fold_in(key, index), (size,), jnp.float32)


def draw(key: jax.Array, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """Normal numbers, float32, of mean 0, drawn in blocks of one of two sizes.

    `jax.random.normal` compiles anew for every shape and takes a second each time on a CPU: half a minute for
    the kernels of a small VAE.
    """
    count = math.prod(shape)
    size = 2**15 if count <= 2**18 else 2**21
    blocks = [_block(key, np.uint32(i), np.float32(deviation), size) for i in range(-(-count // size))]
    return jnp.concatenate(blocks)[:count].reshape(shape)


def _over_time(kernel: jax.Array) -> jax.Array:
    """[kt, kh, kw, in, out] -> [kh, kw, in, out]; the sum is made in float32 and returned in the kernel's type.

    Tap by tap: XLA's CPU code takes twenty times as long to reduce the first axis.
    """
    return sum(kernel[1:].astype(jnp.float32), kernel[0].astype(jnp.float32)).astype(kernel.dtype)


def pictures_only(params: Any) -> Any:
    """Parameters, nested dicts, with every causal kernel summed over time: for single pictures they do the same, and
    no step has to sum them again.
    """
    return jax.tree.map(lambda leaf: _over_time(leaf) if leaf.ndim == 5 else leaf, params)


class Conv(nnx.Module):
    """A convolution over height and width, or causal over time as well.

    `kernel` is [kh, kw, in, out], or [kt, kh, kw, in, out] where `volumetric`. A causal kernel sees kt - 1
    copies of the first frame before it. A kernel without a time axis treats a clip's frames as pictures.
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
          features_in: channels of the input.
          features_out: channels of the output.
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
        deviation = (math.prod(taps) * features_in) ** -0.5
        self.kernel = nnx.Param(draw(rngs.params(), (*taps, features_in, features_out), deviation))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, in] or [B, T, H, W, in] to the same with `out` channels, in the type of `x`.

        At stride 2 a volumetric kernel makes (T - 1) // 2 + 1 frames of T.
        """
        kernel = self.kernel[...]
        clip = None
        if kernel.ndim == 5 and x.ndim == 4:
            kernel = _over_time(kernel)
        elif kernel.ndim == 4 and x.ndim == 5:
            clip, x = x.shape[:2], x.reshape(-1, *x.shape[2:])
        if self._suits_winograd(x, kernel):
            x = jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=self._convolve)
        else:
            x = self._convolve(x, kernel)
        x = x + self.bias[...].astype(x.dtype)
        return x if clip is None else x.reshape(*clip, *x.shape[1:])

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Without the bias; as many axes of space and time as the kernel has."""
        spatial = (self.padding, self.padding)
        if x.ndim == 5:
            x = jnp.pad(x, ((0, 0), (kernel.shape[0] - 1, 0), (0, 0), (0, 0), (0, 0)), mode="edge")
            padding, layout = ((0, 0), *spatial), ("NDHWC", "DHWIO", "NDHWC")
        else:
            padding, layout = spatial, ("NHWC", "HWIO", "NHWC")
        strides = (self.stride,) * (x.ndim - 2)
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), strides, padding, dimension_numbers=layout)

    def _suits_winograd(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Whether it would be right for these pictures, and faster on a CPU."""
        return (
            kernel.shape[:-2] == (3, 3)
            and (self.stride, self.padding) == (1, (1, 1))
            and x.dtype == kernel.dtype == jnp.float32
            and winograd.fits(*x.shape[1:3])
            and math.prod(kernel.shape[-2:]) >= _MANY_CHANNELS
        )


class GroupNorm(nnx.Module):
    """Normalises groups of channels by mean and variance over every axis but the first (time included)."""

    def __init__(self, features: int, groups: int, *, epsilon: float = 1e-6):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, ..., C] to the same shape and type; the statistics are float32.

        Sums run over whole channels first: XLA's CPU code is ten times slower on a reduction that is split
        within a channel axis. Variances add up from within and between the channels of a group.
        """
        y = x.astype(jnp.float32)
        inner = tuple(range(1, x.ndim - 1))
        grouped = (x.shape[0], self.groups, -1)
        mean_c = y.mean(inner)
        within_c = jnp.square(y - mean_c.reshape(x.shape[0], *(1 for _ in inner), -1)).mean(inner)
        mean_c, within_c = mean_c.reshape(grouped), within_c.reshape(grouped)
        mean = mean_c.mean(-1, keepdims=True)
        variance = (within_c + jnp.square(mean_c - mean)).mean(-1, keepdims=True)
        gain = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...].astype(jnp.float32).reshape(self.groups, -1)
        shift = self.bias[...].astype(jnp.float32).reshape(self.groups, -1) - mean * gain
        gain, shift = (part.reshape(x.shape[0], *(1 for _ in inner), -1) for part in (gain, shift))
        return (y * gain + shift).astype(x.dtype)


def _pairs(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """Interleaves two arrays along `axis`."""
    shape = first.shape
    return jnp.stack((first, second), axis + 1).reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


def double(x: jax.Array, axis: int) -> jax.Array:
    """Twice the samples along `axis`, linear between centres, the border samples held (float, any shape)."""
    size = x.shape[axis]
    first, head = (jax.lax.slice_in_dim(x, 0, stop, axis=axis) for stop in (1, size - 1))
    tail, last = (jax.lax.slice_in_dim(x, start, size, axis=axis) for start in (1, size - 1))
    before = jnp.concatenate((first, head), axis)
    after = jnp.concatenate((tail, last), axis)
    return _pairs(0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after, axis)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., 2H, 2W, C] by repeating pixels."""
    for axis in (x.ndim - 3, x.ndim - 2):
        x = _pairs(x, x, axis)
    return x


def upsample_linear(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, C], and [B, T, H, W, C] -> [B, 2T - 1, 2H, 2W, C].

    Linear along every axis. The first frame of a clip stays one frame; those after it are doubled among
    themselves, so that the first never sees them.
    """
    x = double(double(x, x.ndim - 3), x.ndim - 2)
    if x.ndim == 5 and x.shape[1] > 1:
        x = jnp.concatenate((x[:, :1], double(x[:, 1:], 1)), 1)
    return x
