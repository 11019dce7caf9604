"""Leaf layers that several parts share."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.nn.positions import sincos_1d


class LayerNorm(nnx.LayerNorm):
    """Normalises the last axis in float32 and returns the type that came in."""

    def __init__(self, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        # E[x^2] - E[x]^2 would be inexact next to a language model's few huge components.
        super().__init__(dim, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim]."""
        return super().__call__(x).astype(x.dtype)


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Adaptive layer norm: x normalised, then scaled by 1 + scale and shifted."""
    y = x.astype(jnp.float32)
    mean, var = jnp.mean(y, axis=-1, keepdims=True), jnp.var(y, axis=-1, keepdims=True)
    normed = ((y - mean) * jax.lax.rsqrt(var + 1e-6)).astype(x.dtype)
    return normed * (1 + scale) + shift


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them, four times as wide inside."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.fc2 = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim]."""
        y = self.fc1(x)
        # erf, where jax.nn.gelu takes erfc for the sake of its far tail: on a CPU that is not fused into the product.
        return self.fc2(0.5 * y * (1 + jax.lax.erf(y * 2**-0.5)))


class Projector(nnx.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, dim: int, out_dim: int, hidden: int | None = None, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(dim, hidden or out_dim, rngs=rngs)
        self.fc2 = nnx.Linear(hidden or out_dim, out_dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., out_dim]."""
        return self.fc2(jax.nn.silu(self.fc1(x)))


class TimeEmbed(nnx.Module):
    """Embeds a diffusion timestep: 256 cosines and sines, then a projector."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.timestep_proj = Projector(256, dim, rngs=rngs)

    def __call__(self, timestep: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[...] float32 in 0 .. 1000 -> [..., dim]."""
        frequency = jnp.exp(-math.log(10000.0) / 128 * jnp.arange(128, dtype=jnp.float32))
        angle = timestep[..., None].astype(jnp.float32) * frequency
        return self.timestep_proj(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1).astype(dtype))


class TimePosition(nnx.Module):
    """Absolute time positions: sines and cosines through a projector and a norm."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.time_proj = Projector(256, width, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)

    def __call__(self, time: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[...] float32, in frames -> [..., E]."""
        return self.norm(self.time_proj(sincos_1d(time).astype(dtype)))


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cuts pictures into tokens, row by row: [..., h, w, C] -> [..., (h/p)(w/p), p*p*C], channels innermost."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // patch, patch, width // patch, patch, channels)
    tokens = (height // patch) * (width // patch)  # named: a clip may have no frames
    return jnp.moveaxis(x, -4, -3).reshape(*lead, tokens, patch * patch * channels)


def unpatchify(x: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """The inverse of `patchify`: [..., (h/p)(w/p), p*p*C] -> [..., h, w, C]."""
    *lead, _, size = x.shape
    x = x.reshape(*lead, height // patch, width // patch, patch, patch, size // patch**2)
    return jnp.moveaxis(x, -3, -4).reshape(*lead, height, width, size // patch**2)
