"""Images and videos from NOVA: jitted stages and the loop over frames and sets of tokens that runs them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from par_jax.config import NovaConfig
from par_jax.guidance import Guidance
from par_jax.model.nova import MOTION_FLOW, MOTION_FPS, NOVA
from par_jax.nn.functional import Functional, Params
from par_jax.nn.layers import unpatchify
from par_jax.schedulers import Scheduler
from par_jax.sets import predict_set, random_order, set_sizes
from par_jax.types import FrameCache


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be generated.

    Attributes:
      frames: latent frames, the given first one included.
      sizes: tokens of each set of a frame.
      steps: denoising steps of each set.
      guidance: of all of them.
    """

    frames: int
    sizes: tuple[int, ...]
    steps: int
    guidance: Guidance

    @staticmethod
    def of(config: NovaConfig, frames: int, sets: int, steps: int, guidance: Guidance) -> "Plan":
        """A plan with NOVA's set sizes."""
        rows, columns = (size // config.frame_patch for size in config.latent_size)
        return Plan(frames, tuple(set_sizes(rows * columns, sets)), steps, guidance)


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of a generation; `Draws.from_key` makes them, a recorded run brings its own.

    Attributes:
      order: [B, K] int32, the order of the tokens, the same for all frames.
      noise: (frame, set) -> [B, K, D], where each chain starts.
      chain: (frame, set) -> a key, or each step's noise [N, B, K, D].
    """

    order: jax.Array
    noise: Callable[[int, int], jax.Array]
    chain: Callable[[int, int], jax.Array]

    @staticmethod
    def from_key(key: jax.Array, batch: int, tokens: int, token_dim: int, dtype: jnp.dtype) -> "Draws":
        """All draws from one key, each the same whatever comes before it."""
        order_key, noise_key, chain_key = jax.random.split(key, 3)

        def of(key: jax.Array, frame: int, part: int) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(key, frame), part)

        shape = (batch, tokens, token_dim)
        return Draws(
            random_order(order_key, batch, tokens)[0],
            lambda frame, part: jax.random.normal(of(noise_key, frame, part), shape, dtype),
            lambda frame, part: of(chain_key, frame, part),
        )


class Generator:
    """NOVA's stages, each compiled once for a plan.

    Args:
      config: of the model.
      scheduler: of the checkpoint.
      plan: frames, sets, steps and guidance.
    """

    def __init__(self, config: NovaConfig, scheduler: Scheduler, plan: Plan):
        self.config, self.plan = config, plan
        self.nova = Functional(lambda rngs: NOVA(config, rngs=rngs))
        self.chain = scheduler.chain(plan.steps)
        self.encode = jax.jit(self._encode, donate_argnums=1)
        self.predict = jax.jit(self._predict, donate_argnums=1)
        self.text = jax.jit(self._text)

    @property
    def tokens(self) -> int:
        """K, tokens of a frame."""
        return sum(self.plan.sizes)

    @property
    def token_dim(self) -> int:
        """D, numbers a token."""
        return self.config.frame_patch**2 * self.config.latent_channels

    def _text(self, params: Params, embeddings: jax.Array, flow: jax.Array, fps: jax.Array) -> jax.Array:
        """Embeddings of prompts [B, K, text_dim] to text tokens, and motion tokens behind them for videos."""
        nova: NOVA = self.nova.bind(params)
        tokens = nova.text_embed(embeddings)
        if nova.motion_embed is None:
            return tokens
        return jnp.concatenate([tokens, nova.motion_embed(flow, fps, tokens.dtype)], axis=1)

    def start(self, batch: int, text: int, dtype: jnp.dtype) -> FrameCache:
        """An empty cache for `batch` clips with `text` text and motion tokens."""
        c = self.config
        frame = math.prod(size // c.video_patch for size in c.latent_size)
        rows = batch * self.plan.guidance.passes
        shape = (c.video_depth, rows, text + self.plan.frames * frame, c.heads, c.width // c.heads)
        return FrameCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))

    def _encode(
        self,
        params: Params,
        cache: FrameCache,
        latents: jax.Array,
        time: jax.Array,
        text: jax.Array | None,
        first: jax.Array | None,
    ) -> tuple[FrameCache, jax.Array, jax.Array]:
        """Conditions of the frame at place `time`.

        Args:
          cache: of all earlier frames.
          latents: [B, h, w, C], the frame before; not read at the first place.
          time: [] int32.
          text: [passes * B, K, E] at the first place, None later.
          first: [passes * B, K_o, E], the first place's outputs; None there.

        Returns:
          The cache, the conditions [passes * B, K_o, E] and the first place's outputs.
        """
        nova: NOVA = self.nova.bind(params)
        guidance, begin = self.plan.guidance, nova.begin[...]
        tokens = nova.video_tokens(latents)
        tokens = tokens if text is None else jnp.broadcast_to(begin.astype(tokens.dtype), tokens.shape)
        tokens = nova.positioned(tokens[:, None], time[None], self.plan.frames)[:, 0]
        tokens = guidance.expand_video(tokens, begin)
        angles = nova.angles(time[None])
        given = 0
        if text is not None:
            given = text.shape[1]
            tokens = jnp.concatenate([text, tokens], axis=1)
            angles = None if angles is None else jnp.pad(angles, ((0, 0), (given, 0), (0, 0)))
        cache, out = nova.video_encoder.step(cache, tokens, angles)
        out = out[:, given:]
        if first is not None and nova.mixer is not None:
            return cache, nova.mixer(first, out), first
        return cache, out, out if first is None else first

    def _predict(
        self,
        params: Params,
        x: jax.Array,
        condition: jax.Array,
        order: jax.Array,
        begin: jax.Array,
        size: jax.Array,
        noise: jax.Array,
        draws: jax.Array,
        scale: jax.Array,
    ) -> jax.Array:
        """`par_jax.sets.predict_set` with this plan: x [B, K, D] -> [B, K, D]."""
        nova: NOVA = self.nova.bind(params)
        return predict_set(
            nova.frame_encoder,
            nova.frame_head,
            self.chain,
            x,
            condition,
            order,
            begin,
            size,
            max(self.plan.sizes),
            noise,
            draws,
            self.plan.guidance,
            scale,
        )

    def run(
        self,
        params: Params,
        text: jax.Array,
        draws: Draws,
        given: jax.Array | None = None,
        progress: Callable[[], Any] = lambda: None,
    ) -> Iterator[jax.Array]:
        """Generates frame by frame.

        Args:
          params: NOVA's.
          text: [passes * B, K, E] text tokens for all passes, motion tokens behind them for a video.
          draws: the random numbers.
          given: [B, h, w, C] scaled latents of the first frame (image to video), or None.
          progress: called after each set.

        Yields:
          Scaled latents [B, h, w, C] of each frame, the given one first.
        """
        config, plan = self.config, self.plan
        batch, dtype = text.shape[0] // plan.guidance.passes, text.dtype
        cache = self.start(batch, text.shape[1], dtype)
        frame, first = jnp.zeros((batch, *config.latent_size, config.latent_channels), dtype), None
        for t in range(plan.frames):
            time = jnp.asarray(t, jnp.int32)
            cache, condition, first = self.encode(params, cache, frame, time, None if t else text, first)
            if t == 0 and given is not None:
                frame = given.astype(dtype)
                yield frame
                continue
            x, begin = jnp.zeros((batch, self.tokens, self.token_dim), dtype), 0
            for i, size in enumerate(plan.sizes):
                scale = plan.guidance.at((i + 1) / len(plan.sizes))
                x = self.predict(
                    params,
                    x,
                    condition,
                    draws.order,
                    jnp.asarray(begin, jnp.int32),
                    jnp.asarray(size, jnp.int32),
                    draws.noise(t, i),
                    draws.chain(t, i),
                    jnp.asarray(scale, jnp.float32),
                )
                begin += size
                progress()
            frame = unpatchify(x, config.frame_patch, *config.latent_size)
            yield frame

    def motion(self, batch: int, flow: float = MOTION_FLOW, fps: float = MOTION_FPS) -> tuple[jax.Array, jax.Array]:
        """A clip's motion and its frames a second for each row of a batch of all passes: two [passes * B]."""
        rows = batch * self.plan.guidance.passes
        return jnp.full(rows, flow, jnp.float32), jnp.full(rows, fps, jnp.float32)
