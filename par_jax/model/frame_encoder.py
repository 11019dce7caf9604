"""NOVA's masked frame encoder: conditions every token of a frame on those already known (paper eq. 7)."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import ModelConfig
from par_jax.nn.attention import Block
from par_jax.nn.positions import sincos_2d
from par_jax.nn.stack import Stack


class FrameEncoder(nnx.Module):
    """A bidirectional transformer over [condition | frame]: the first half of its blocks runs on the visible
    tokens only, the second half on all, with the mask token in the place of hidden ones.

    Args:
      grid: rows and columns of the frame's tokens.
      token_dim: numbers a token (patch * patch * C).
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int], token_dim: int, *, rngs: nnx.Rngs):
        self.config, self.grid = config, grid
        self.patch_embed = nnx.Linear(token_dim, config.width, rngs=rngs)
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.width,)))
        self.stack = Stack(lambda r: Block(config.width, config.heads, rngs=r), config.frame_depth, rngs=rngs)
        self.norm = nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array, condition: jax.Array, visible: jax.Array, count: jax.Array) -> jax.Array:
        """Conditions for the per-token diffusion head.

        Args:
          tokens: [B, K, token_dim], the frame's patches; only the visible ones are read.
          condition: [B, K_o, E], Z_O of the video encoder.
          visible: [B, V] int32, ids of tokens that are known.
          count: [B] int32, how many of the V ids hold; the others are ignored.

        Returns:
          [B, K, E].
        """
        b, k, _ = tokens.shape
        given = condition.shape[1]
        known = jnp.arange(visible.shape[1]) < count[:, None]
        rows = jnp.arange(b)[:, None]
        shown = jnp.zeros((b, k), bool).at[rows, visible].max(known)
        position = jnp.asarray(sincos_2d(*self.grid, self.config.width), condition.dtype)
        x = jnp.where(shown[..., None], self.patch_embed(tokens), self.mask_token[...].astype(tokens.dtype))
        x = x + position

        half = self.config.frame_depth // 2
        seen = jnp.concatenate([jnp.ones((b, given), bool), known], axis=1)[:, None, :]
        part = jnp.concatenate([condition, jnp.take_along_axis(x, visible[..., None], axis=1)], axis=1)
        part, _ = self.stack.scan(lambda block, y, _: (block(y, seen), None), part, stop=half)
        index = jnp.where(known, visible, k)
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0))).at[rows, index].set(part[:, given:])[:, :k]
        x = jnp.concatenate([part[:, :given], x], axis=1)
        x, _ = self.stack.scan(lambda block, y, _: (block(y), None), x, start=half)
        return self.norm(x[:, given:])
