"""The causal transformer over physical tokens (paper section 4.2.2), in parallel or step by step with a cache."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import ModelConfig
from par_jax.nn.attention import Block, attend, attend_heads
from par_jax.nn.layers import LayerNorm
from par_jax.nn.masks import own_package_mask_at, package_mask, package_of
from par_jax.nn.positions import action_angles, frame_angles
from par_jax.nn.stack import Stack
from par_jax.types import KVCache


class VideoEncoder(nnx.Module):
    """NOVA's video encoder under PAR's mask.

    Args:
      grid: rows and columns of a frame's tokens.
      text: K_t, tokens of the instruction.
      remat: what the backward pass computes again.
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int], text: int, remat: str = "none", *, rngs: nnx.Rngs):
        self.config, self.grid, self.text = config, grid, text
        depth = config.video_depth
        self.stack = Stack(lambda r: Block(config.width, config.heads, rngs=r), depth, remat=remat, rngs=rngs)
        self.norm = LayerNorm(config.width, rngs=rngs)

    @property
    def frame_tokens(self) -> int:
        """K_o, tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def package_tokens(self) -> int:
        """Tokens of a package: a frame's and a chunk's."""
        return self.frame_tokens + self.config.chunk

    def angles(self, time: jax.Array) -> jax.Array:
        """Rotary angles of whole packages: [...] float32 -> [..., K_package, D // 2]."""
        c, head = self.config, self.config.width // self.config.heads
        if c.positions == "rotary":
            time = time + 1  # NOVA's time 0 is that of its begin-of-video frame
        frame = frame_angles(time, *self.grid, head, c.rope_theta)
        frame = jnp.zeros_like(frame) if c.positions == "absolute" else frame
        action = action_angles(time, c.chunk, head, c.rope_theta, c.action_rope_theta)
        return jnp.concatenate([frame, action], axis=-2)

    def __call__(
        self,
        text: jax.Array,
        packages: jax.Array,
        time: jax.Array,
        alone: jax.Array | None = None,
        silent: jax.Array | None = None,
    ) -> jax.Array:
        """All packages in one pass (teacher forcing, paper section 4.2.6).

        Args:
          text: [B, K_text, E] instruction tokens.
          packages: [B, N, K_package, E] physical tokens P_0 .. P_{N-1}.
          time: [B, N] float32, the packages' time positions.
          alone: [B] bool, sequences whose packages see none of the earlier ones (history dropout).
          silent: [B] bool, sequences whose frame tokens see no action tokens (videos without actions).

        Returns:
          [B, N, K_package, E]: Z at P_{n-1} conditions the prediction of P_n.
        """
        b, n, k, e = packages.shape
        mask = package_mask(self.text, self.frame_tokens, self.config.chunk, n, self.config.context)
        if alone is not None:
            of = package_of(self.text, k, n)
            near = (of[:, None] == of[None, :]) | (of[None, :] < 0)
            mask = mask & (near | ~alone[:, None, None])
        if silent is not None:
            place = jnp.arange(n * k) % k
            action = jnp.concatenate([jnp.zeros(self.text, bool), place >= self.frame_tokens])
            mask = mask & (action[:, None] | ~action[None, :] | ~silent[:, None, None])
        x, angles = self.joined(text, packages, time)
        x, _ = self.stack.scan(lambda block, x, _: (block(x, mask, angles), None), x)
        return self.norm(x[:, self.text :]).reshape(b, n, k, e)

    def joined(self, text: jax.Array, packages: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `__call__` takes as one sequence [B, S, E], and its rotary angles [B, S, D // 2]."""
        b, n, k, e = packages.shape
        angles = self.angles(time).reshape(b, n * k, -1)
        angles = jnp.pad(angles, ((0, 0), (self.text, 0), (0, 0)))
        return jnp.concatenate([text, packages.reshape(b, n * k, e)], axis=1), angles

    def start(self, text: jax.Array) -> KVCache:
        """An empty cache that knows the instruction: text [B, K_text, E]."""
        c = self.config

        def body(block: Block, x: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            q, k, v = block.attn.project(x)
            return block.finish(x, attend(q, k, v)), (k, v)

        _, prefix = self.stack.scan(body, text)
        b, room = text.shape[0], c.context * self.package_tokens
        k, v = (jnp.pad(jnp.swapaxes(part, 2, 3), ((0, 0),) * 3 + ((0, room), (0, 0))) for part in prefix)
        ahead = jnp.zeros((b, (c.lookahead - 1) * c.chunk, c.action_dim), jnp.float32)
        return KVCache(k, v, jnp.int32(0), jnp.zeros(b, jnp.int32), ahead)

    def step(self, cache: KVCache, package: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
        """One package through the layers, seeing what the cache holds.

        The newest package takes the slot of the one that leaves the window, so the cost is constant. Keys and values
        are carried through the layers and, where the cache is donated, written in place. Acting needs Z_A alone: of
        the last layer, the frame's tokens take part with their keys and values only.

        Args:
          cache: of B robots.
          package: [B, K_package, E].

        Returns:
          The cache with the package in it; the frame's tokens before the last layer [B, K_o, E], from which `frame`
          makes Z_O; and Z_A [B, L, E].
        """
        angles = self.angles(cache.time.astype(jnp.float32))
        mask = self._step_mask(cache.time, cache.slot)
        first = self.text + cache.slot * self.package_tokens

        def attended(block: Block, x: jax.Array, kept: list, layer: jax.Array, skip: int = 0) -> tuple:
            q, *new = block.attn.project(x, angles)
            place = (layer, 0, 0, first, 0)
            kept = [
                jax.lax.dynamic_update_slice(old, jnp.swapaxes(part, 1, 2)[None], place)
                for old, part in zip(kept, new, strict=True)
            ]
            keys, values = (jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in kept)
            return block.finish(x[:, skip:], attend_heads(q[:, skip:], keys, values, mask[:, skip:])), *kept

        def body(block: Block, carry: tuple, layer: jax.Array) -> tuple[tuple, None]:
            x, *kept = carry
            return attended(block, x, kept, layer), None

        def final(block: Block, carry: list, layer: jax.Array) -> tuple[list, jax.Array]:
            z, *carry = attended(block, x, carry, layer, skip=self.frame_tokens)
            return carry, z

        last = self.stack.depth - 1
        layers = jnp.arange(self.stack.depth)
        (x, *kept), _ = self.stack.scan(body, (package, cache.k, cache.v), layers[:last], stop=last)
        (k, v), (z,) = self.stack.scan(final, kept, layers[last:], start=last)
        slot = (cache.slot + 1) % self.config.context
        cache = dataclasses.replace(cache, k=k, v=v, slot=slot, time=cache.time + 1)
        return cache, x[:, : self.frame_tokens], self.norm(z)

    def frame(self, cache: KVCache, waiting: jax.Array) -> jax.Array:
        """The last layer for the frame's tokens, after the `step` that left them waiting [B, K_o, E]: Z_O, likewise."""
        time, slot, last = cache.time - 1, (cache.slot - 1) % self.config.context, self.stack.depth - 1
        angles = self.angles(time.astype(jnp.float32))[:, : self.frame_tokens]
        mask = self._step_mask(time, slot)[:, : self.frame_tokens]

        def final(block: Block, _: None, kept: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
            q, _, _ = block.attn.project(waiting, angles)
            return None, block.finish(waiting, attend_heads(q, *kept, mask))

        _, (z,) = self.stack.scan(final, None, (cache.k[last:], cache.v[last:]), start=last)
        return self.norm(z)

    def _step_mask(self, time: jax.Array, slot: jax.Array) -> jax.Array:
        """Who the newest package's tokens see: [B, K_package, K_text + W * K_package] bool."""
        size, window = self.package_tokens, self.config.context
        place, age = jnp.arange(size), (slot - jnp.arange(window)) % window
        own = own_package_mask_at(place[:, None], place[None, :], self.frame_tokens)
        seen = jnp.where(age[:, None] == 0, own[:, None, :], (age <= time[:, None])[:, None, :, None])
        seen = seen.reshape(time.shape[0], size, window * size)
        return jnp.concatenate([jnp.ones((*seen.shape[:2], self.text), bool), seen], axis=-1)
