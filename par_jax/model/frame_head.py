"""NOVA's frame head (paper section 4.2.3): a pure function of (noisy tokens, t, condition)."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.nn.layers import LayerNorm, Projector, TimeEmbed, modulate
from par_jax.nn.stack import Stack


class MLPBlock(nnx.Module):
    """A residual block of NOVA's diffusion MLP, modulated by time and condition."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.modulation = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.proj = Projector(dim, dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """x and z [..., dim] -> [..., dim]."""
        scale, shift, gate = jnp.split(self.modulation(jax.nn.silu(z)), 3, axis=-1)
        return x + self.norm2(self.proj(modulate(x, scale, shift))) * gate


class FrameHead(nnx.Module):
    """NOVA's per-token diffusion MLP: every token is denoised by itself.

    Args:
      token_dim: numbers a token (patch * patch * C).
      cond_dim: width of the frame encoder.
    """

    def __init__(self, token_dim: int, cond_dim: int, width: int, depth: int, *, rngs: nnx.Rngs):
        self.patch_embed = nnx.Linear(token_dim, width, rngs=rngs)
        self.time_embed = TimeEmbed(width, rngs=rngs)
        self.condition_proj = Projector(cond_dim, width, rngs=rngs)
        self.stack = Stack(lambda r: MLPBlock(width, rngs=r), depth, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, rngs=rngs)
        self.head = nnx.Linear(width, token_dim, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """Predicts the diffusion target.

        Args:
          x: [..., K, token_dim] noisy tokens.
          t: [..., K] float32 timesteps in 0 .. 1000, or broadcastable to it.
          z: [..., K, cond_dim] conditions.

        Returns:
          [..., K, token_dim].
        """
        return self.denoise(x, t, self.condition_proj(z))

    def denoise(self, x: jax.Array, t: jax.Array, c: jax.Array) -> jax.Array:
        """As `__call__`, with c = `condition_proj(z)`, which a sampler computes once for all of its steps."""
        z = c + self.time_embed(t, c.dtype)
        x, _ = self.stack.scan(lambda block, x, _: (block(x, z), None), self.patch_embed(x))
        scale, shift = jnp.split(self.modulation(jax.nn.silu(z)), 2, axis=-1)
        return self.head(modulate(x, scale, shift))
