"""NOVA (arXiv 2412.14169): text and past frames to the tokens of the next frame.

Names are PAR's (`par_jax.model.par`), so that converted parameters find their places there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from par_jax.config import NovaConfig
from par_jax.model.frame_encoder import FrameEncoder
from par_jax.model.frame_head import FrameHead
from par_jax.model.text import TextProjector
from par_jax.nn.attention import Block, attend
from par_jax.nn.layers import LayerNorm, Projector, TimePosition, patchify
from par_jax.nn.masks import frame_mask
from par_jax.nn.positions import frame_angles, sincos_1d, sincos_2d
from par_jax.nn.stack import Stack
from par_jax.types import FrameCache

# What a clip's motion and frame rate are when nothing else is said.
MOTION_FLOW, MOTION_FPS = 5.0, 12.0


class MotionEmbed(nnx.Module):
    """Two tokens that tell a clip's motion and its frames a second."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.flow_proj = Projector(256, width, rngs=rngs)
        self.fps_proj = Projector(256, width, rngs=rngs)

    def __call__(self, flow: jax.Array, fps: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B] float32 each -> [B, 2, E]."""
        parts = (self.flow_proj, flow), (self.fps_proj, fps)
        return jnp.stack([proj(sincos_1d(values).astype(dtype)) for proj, values in parts], axis=1)


class Mixer(nnx.Module):
    """Adaptive layer norm without a norm: the first frame's outputs, scaled and shifted by a later frame's.

    Args:
      rank: of the map to scale and shift; 0 for full rank.
    """

    def __init__(self, width: int, rank: int, *, rngs: nnx.Rngs):
        self.lora = nnx.Linear(width, rank, use_bias=False, rngs=rngs) if rank else None
        self.proj = nnx.Linear(rank or width, 2 * width, rngs=rngs)

    def __call__(self, first: jax.Array, later: jax.Array) -> jax.Array:
        """first, later [..., K, E] -> [..., K, E]."""
        z = jax.nn.silu(later)
        scale, shift = jnp.split(self.proj(z if self.lora is None else self.lora(z)), 2, axis=-1)
        return first * (1 + scale) + shift


class CausalEncoder(nnx.Module):
    """NOVA's video encoder: frame by frame, text and first frame being one bidirectional block."""

    def __init__(self, width: int, heads: int, depth: int, *, rngs: nnx.Rngs):
        self.heads, self.head_dim = heads, width // heads
        self.stack = Stack(lambda r: Block(width, heads, rngs=r), depth, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)

    def __call__(self, text: jax.Array, frames: jax.Array, angles: jax.Array | None) -> jax.Array:
        """All frames in one pass: text [B, K_text, E], frames [B, T, K, E], angles [T, K, D // 2] -> like frames."""
        b, t, k, e = frames.shape
        given = text.shape[1]
        mask = frame_mask(given, k, t)
        if angles is not None:
            angles = jnp.pad(angles.reshape(1, t * k, -1), ((0, 0), (given, 0), (0, 0)))
        x = jnp.concatenate([text, frames.reshape(b, t * k, e)], axis=1)
        x, _ = self.stack.scan(lambda block, x, _: (block(x, mask, angles), None), x)
        return self.norm(x[:, given:]).reshape(b, t, k, e)

    def step(self, cache: FrameCache, x: jax.Array, angles: jax.Array | None) -> tuple[FrameCache, jax.Array]:
        """The next tokens, which see each other and all that the cache holds.

        Args:
          cache: with room for them.
          x: [B, S, E]: the first time text and a frame, then a frame.
          angles: [1, S, D // 2].

        Returns:
          The cache with the tokens in it, and their outputs [B, S, E].
        """
        seen = jnp.arange(cache.k.shape[2]) < cache.length + x.shape[1]

        def body(block: Block, x: jax.Array, kept: tuple) -> tuple[jax.Array, tuple]:
            q, k, v = block.attn.project(x, angles)
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new, cache.length, axis=1)
                for old, new in zip(kept, (k, v), strict=True)
            )
            return block.finish(x, attend(q, k, v, seen[None, None, :])), (k, v)

        x, (k, v) = self.stack.scan(body, x, (cache.k, cache.v))
        return FrameCache(k, v, cache.length + x.shape[1]), self.norm(x)


class NOVA(nnx.Module):
    """Video encoder, frame encoder and frame head with all that feeds them. Text encoder and VAE stand apart."""

    def __init__(self, config: NovaConfig, *, rngs: nnx.Rngs):
        c, width = config, config.width
        self.config = c
        rows, columns = c.latent_size
        self.grid = (rows // c.video_patch, columns // c.video_patch)
        frame_grid = (rows // c.frame_patch, columns // c.frame_patch)
        token_dim = c.frame_patch**2 * c.latent_channels
        self.text_embed = TextProjector(c.text_dim, width, rngs=rngs)
        self.motion_embed = MotionEmbed(width, rngs=rngs) if c.motion else None
        self.patch_embed = nnx.Linear(c.video_patch**2 * c.latent_channels, width, rngs=rngs)
        self.begin = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.video_position = None if c.rotary else TimePosition(width, rngs=rngs)
        self.video_encoder = CausalEncoder(width, c.heads, c.video_depth, rngs=rngs)
        self.mixer = None if c.mixer_rank is None else Mixer(width, c.mixer_rank, rngs=rngs)
        self.frame_encoder = FrameEncoder(frame_grid, token_dim, width, c.heads, c.frame_depth, c.rotary, rngs=rngs)
        self.frame_head = FrameHead(token_dim, width, c.frame_head_width, c.frame_head_depth, rngs=rngs)

    def video_tokens(self, latents: jax.Array) -> jax.Array:
        """Frames [..., h, w, C] to tokens [..., K_o, E], without positions."""
        return self.patch_embed(patchify(latents, self.config.video_patch))

    def positioned(self, tokens: jax.Array, time: jax.Array, frames: int) -> jax.Array:
        """Adds absolute positions, where the model has them.

        Args:
          tokens: [B, T, K_o, E].
          time: [T] int32, the frames' places in the clip.
          frames: places of the whole clip.
        """
        if self.video_position is None:
            return tokens
        scaled = time.astype(jnp.float32) / (frames / self.config.video_base[0])
        times = self.video_position(scaled, tokens.dtype)
        space = jnp.asarray(sincos_2d(*self.grid, tokens.shape[-1]), tokens.dtype)
        return tokens + times[:, None, :] + space

    def angles(self, time: jax.Array) -> jax.Array | None:
        """Rotary angles of frames at integer times, [T] -> [T, K_o, D // 2]; None for absolute positions."""
        if not self.config.rotary:
            return None
        return frame_angles(time.astype(jnp.float32), *self.grid, self.video_encoder.head_dim, 10000.0)

    def encode_clip(self, text: jax.Array, latents: jax.Array) -> jax.Array:
        """Teacher forcing: conditions of all frames of a clip in one pass.

        Args:
          text: [B, K, E] text tokens, and motion tokens behind them if any.
          latents: [B, T, h, w, C].

        Returns:
          [B, T, K_o, E], frame t conditioned on the text and frames before t; for `mixed`.
        """
        b, t = latents.shape[:2]
        tokens = self.video_tokens(latents[:, :-1])
        begin = jnp.broadcast_to(self.begin[...].astype(latents.dtype), (b, 1, np.prod(self.grid), self.config.width))
        times = jnp.arange(t)
        tokens = self.positioned(jnp.concatenate([begin, tokens], axis=1), times, t)
        return self.video_encoder(text, tokens, self.angles(times))

    def mixed(self, out: jax.Array) -> jax.Array:
        """The mixer over all frames, where the model has one: [B, T, K_o, E] -> the same."""
        if self.mixer is None or out.shape[1] == 1:
            return out
        return jnp.concatenate([out[:, :1], self.mixer(out[:, :1], out[:, 1:])], axis=1)
