"""The two diffusion heads (paper section 4.2.3): pure functions of (noisy tokens, t, condition)."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.nn.attention import Attention, attend
from par_jax.nn.layers import MLP, LayerNorm, Projector, TimeEmbed
from par_jax.nn.stack import Stack


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Adaptive layer norm: x normalised, then scaled by 1 + scale and shifted."""
    y = x.astype(jnp.float32)
    mean, var = jnp.mean(y, axis=-1, keepdims=True), jnp.var(y, axis=-1, keepdims=True)
    normed = ((y - mean) * jax.lax.rsqrt(var + 1e-6)).astype(x.dtype)
    return normed * (1 + scale) + shift


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


class ActionBlock(nnx.Module):
    """A DiT block: self-attention among the chunk's actions, cross-attention to Z_A, MLP.

    The time embedding modulates each branch (adaLN); zero gates make the block start as the identity.
    """

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.modulation = nnx.Linear(dim, 9 * dim, kernel_init=zeros, rngs=rngs)
        self.attn = Attention(dim, heads, rngs=rngs)
        self.cross_q = nnx.Linear(dim, dim, rngs=rngs)
        self.cross_kv = nnx.Linear(dim, 2 * dim, rngs=rngs)
        self.cross_proj = nnx.Linear(dim, dim, rngs=rngs)
        self.mlp = MLP(dim, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """x [B, L, E], t [B, 1, E], z [B, K, E] -> [B, L, E]."""
        s = jnp.split(self.modulation(jax.nn.silu(t)), 9, axis=-1)
        x = x + s[2] * self.attn.merge(attend(*self.attn.project(modulate(x, s[0], s[1]))))
        q = self.cross_q(modulate(x, s[3], s[4])).reshape(*x.shape[:-1], self.heads, -1)
        kv = self.cross_kv(z).reshape(*z.shape[:-1], 2, self.heads, -1)
        o = attend(q, kv[..., 0, :, :], kv[..., 1, :, :])
        x = x + s[5] * self.cross_proj(o.reshape(x.shape))
        return x + s[8] * self.mlp(modulate(x, s[6], s[7]))


class ActionHead(nnx.Module):
    """Action-DiT: denoises the L actions of a chunk together, cross-attending to Z_A (paper fig. 2, right).

    Args:
      action_dim: A.
      chunk: L.
      cond_dim: width of the video encoder.
    """

    def __init__(
        self,
        action_dim: int,
        chunk: int,
        cond_dim: int,
        width: int,
        depth: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
    ):
        zeros = nnx.initializers.zeros
        self.embed = nnx.Linear(action_dim, width, rngs=rngs)
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (chunk, width)))
        self.time_embed = TimeEmbed(width, rngs=rngs)
        self.condition_proj = nnx.Linear(cond_dim, width, rngs=rngs)
        self.stack = Stack(lambda r: ActionBlock(width, heads, rngs=r), depth, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.head = nnx.Linear(width, action_dim, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
        """Predicts the diffusion target.

        Args:
          x: [B, L, A] noisy actions.
          t: [B] float32 timesteps in 0 .. 1000.
          z: [B, L, cond_dim] conditions Z_A.

        Returns:
          [B, L, A].
        """
        t = self.time_embed(t, z.dtype)[:, None, :]
        z = self.condition_proj(z)
        x = self.embed(x) + self.position[...].astype(x.dtype)
        x, _ = self.stack.scan(lambda block, x, _: (block(x, t, z), None), x)
        scale, shift = jnp.split(self.modulation(jax.nn.silu(t)), 2, axis=-1)
        return self.head(modulate(x, scale, shift))
