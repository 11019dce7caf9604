"""What stands in the video encoder's place where there is no transformer (PAR's ablation NoAR, section 5.3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import ModelConfig
from par_jax.types import KVCache


class Embedded(nnx.Module):
    """The embedded tokens of text, frame and last chunk are the action head's conditions themselves.

    It has the interface of `VideoEncoder`; nothing of earlier packages is seen. Outputs are [frame tokens | text,
    frame and action tokens], where the video encoder's are [frame tokens | action tokens].
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int], text: int):
        self.config, self.grid, self.text = config, grid, text

    @property
    def frame_tokens(self) -> int:
        """K_o, tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def package_tokens(self) -> int:
        """Tokens of a package: a frame's and a chunk's."""
        return self.frame_tokens + self.config.chunk

    def __call__(
        self,
        text: jax.Array,
        packages: jax.Array,
        time: jax.Array,
        alone: jax.Array | None = None,
        silent: jax.Array | None = None,
    ) -> jax.Array:
        """As `VideoEncoder.__call__`; the times and both masks change nothing: [B, N, K_o + K_text + K_package, E]."""
        text = jnp.broadcast_to(text[:, None], (*packages.shape[:2], *text.shape[1:]))
        return jnp.concatenate([packages[:, :, : self.frame_tokens], text, packages], axis=2)

    def start(self, text: jax.Array) -> KVCache:
        """A cache that holds the instruction's tokens [B, K_text, E] in the place of their keys."""
        c, b = self.config, text.shape[0]
        ahead = jnp.zeros((b, (c.lookahead - 1) * c.chunk, c.action_dim), jnp.float32)
        k = text[None, :, None]
        return KVCache(k, jnp.zeros_like(k[:0]), jnp.int32(0), jnp.zeros(b, jnp.int32), ahead)

    def step(self, cache: KVCache, package: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
        """As `VideoEncoder.step`: package [B, K_package, E] -> [B, K_o, E] and Z_A [B, K_text + K_package, E]."""
        z = self(cache.k[0, :, 0], package[:, None], jnp.zeros(()))[:, 0]
        frame, z_a = jnp.split(z, [self.frame_tokens], axis=1)
        return dataclasses.replace(cache, time=cache.time + 1), frame, z_a

    def frame(self, _: KVCache, waiting: jax.Array) -> jax.Array:
        """As `VideoEncoder.frame`: there is no layer left."""
        return waiting
