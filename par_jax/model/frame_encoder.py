"""NOVA's masked frame encoder: conditions every token of a frame on those already known (paper eq. 7)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.nn.attention import Block, attend
from par_jax.nn.layers import LayerNorm, Linear
from par_jax.nn.positions import frame_angles, sincos_2d
from par_jax.nn.stack import Stack

# Generation rounds the number of known tokens up to a multiple of a sixteenth of the frame.
BUCKETS = 16


class FrameEncoder(nnx.Module):
    """A bidirectional transformer over [condition | frame]: the first half of its blocks runs on the visible
    tokens only, the second half on all, with the mask token in the place of hidden ones.

    Args:
      grid: rows and columns of the frame's tokens.
      token_dim: numbers a token (patch * patch * C).
      width, heads, depth: of the transformer.
      rotary: rotary positions (condition tokens stand at the origin) instead of absolute ones.
      remat: what the backward pass computes again.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        token_dim: int,
        width: int,
        heads: int,
        depth: int,
        rotary: bool = False,
        remat: str = "none",
        *,
        rngs: nnx.Rngs,
    ):
        self.grid, self.rotary, self.head_dim = grid, rotary, width // heads
        self.patch_embed = Linear(token_dim, width, rngs=rngs)
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.stack = Stack(lambda r: Block(width, heads, rngs=r), depth, remat=remat, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)

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
        known = jnp.arange(visible.shape[1]) < count[:, None]
        x = self._first_half(self._embed(tokens, visible, known), condition, visible, known)
        x = self._second_half(x, condition.shape[1], self.stack.depth)
        return self.norm(x[:, condition.shape[1] :])

    def context(self, tokens: jax.Array, condition: jax.Array, order: jax.Array, count: jax.Array) -> jax.Array:
        """All blocks but the last, for generation: the work follows the number of tokens that are known.

        Args:
          tokens: [B, K, token_dim], the frame's patches; only the known ones are read.
          condition: [B, K_o, E].
          order: [B, K] int32, ids in the order in which they become known.
          count: [] int32, how many are known: the first ones of `order`.

        Returns:
          [B, K_o + K, E], for `read`.
        """
        k = order.shape[1]
        known = jnp.broadcast_to(jnp.arange(k) < count, order.shape)
        embedded = self._embed(tokens, order, known)
        sizes = sorted({-(-k * i // BUCKETS) for i in range(BUCKETS + 1)})
        branches = [functools.partial(self._first_half_of, size) for size in sizes]
        branch = jnp.searchsorted(jnp.asarray(sizes), count)
        x = jax.lax.switch(branch, branches, embedded, condition, order, known)
        return self._second_half(x, condition.shape[1], self.stack.depth - 1)

    def read(self, x: jax.Array, wanted: jax.Array) -> jax.Array:
        """The last block, of which only some tokens' rows are computed.

        Args:
          x: what `context` gave.
          wanted: [B, P] int32, ids of the tokens to give conditions for.

        Returns:
          [B, P, E].
        """
        given = x.shape[1] - self.grid[0] * self.grid[1]
        block = self.stack.block(self.stack.depth - 1)
        q, keys, values = block.attn.project(x, self._angles(given))
        rows = given + wanted
        o = attend(jnp.take_along_axis(q, rows[..., None, None], axis=1), keys, values)
        return self.norm(block.finish(jnp.take_along_axis(x, rows[..., None], axis=1), o))

    def _angles(self, given: int, ids: jax.Array | None = None) -> jax.Array | None:
        """Rotary angles of [condition | tokens], [B or 1, given + tokens, D // 2]; of all tokens without ids."""
        if not self.rotary:
            return None
        angles = frame_angles(jnp.zeros((1,)), *self.grid, self.head_dim, 10000.0)
        angles = angles if ids is None else angles[0][ids]
        return jnp.pad(angles, ((0, 0), (given, 0), (0, 0)))

    def _embed(self, tokens: jax.Array, visible: jax.Array, known: jax.Array) -> jax.Array:
        rows = jnp.arange(tokens.shape[0])[:, None]
        shown = jnp.zeros(tokens.shape[:2], bool).at[rows, visible].max(known)
        x = jnp.where(shown[..., None], self.patch_embed(tokens), self.mask_token[...].astype(tokens.dtype))
        return x if self.rotary else x + jnp.asarray(sincos_2d(*self.grid, x.shape[-1]), x.dtype)

    def _first_half(self, x: jax.Array, condition: jax.Array, visible: jax.Array, known: jax.Array) -> jax.Array:
        """The visible tokens' blocks: x [B, K, E] -> [condition | frame] with their outputs in place."""
        (b, k, _), given = x.shape, condition.shape[1]
        seen = jnp.concatenate([jnp.ones((b, given), bool), known], axis=1)[:, None, :]
        part = jnp.concatenate([condition, jnp.take_along_axis(x, visible[..., None], axis=1)], axis=1)
        angles = self._angles(given, visible)
        part, _ = self.stack.scan(lambda block, y, _: (block(y, seen, angles), None), part, stop=self.stack.depth // 2)
        index = jnp.where(known, visible, k)
        x = x.at[jnp.arange(b)[:, None], index].set(part[:, given:], mode="drop")
        return jnp.concatenate([part[:, :given], x], axis=1)

    def _first_half_of(
        self, size: int, x: jax.Array, condition: jax.Array, order: jax.Array, known: jax.Array
    ) -> jax.Array:
        return self._first_half(x, condition, order[:, :size], known[:, :size])

    def _second_half(self, x: jax.Array, given: int, stop: int) -> jax.Array:
        angles = self._angles(given)
        start = self.stack.depth // 2
        return self.stack.scan(lambda block, y, _: (block(y, None, angles), None), x, start=start, stop=stop)[0]
