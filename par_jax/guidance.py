"""Classifier-free guidance of NOVA's generation: passes with and without the prompt (and the past), combined."""

import dataclasses

import jax
import jax.numpy as jnp

from par_jax.diffusion import Chain


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How the passes are combined.

    The passes stand one behind the other along the batch axis: with the prompt; without it; and, where
    `image_scale` is given, without the prompt but with the frames of the past, which the second pass then lacks.

    Attributes:
      scale: weight of the prompt's direction; 1 means one pass only.
      min_scale: the scale grows from about this one to `scale` over the sets of a frame; None for constant.
      truncation: no guidance at timesteps below this one.
      renormalisation: least factor by which a guided prediction is shortened to the norm of the unguided one;
        1 for never.
      image_scale: weight of the past frames' direction; 0 for two passes only.
    """

    scale: float = 1.0
    min_scale: float | None = None
    truncation: float = 0.0
    renormalisation: float = 1.0
    image_scale: float = 0.0

    @property
    def passes(self) -> int:
        """1, 2 or 3."""
        if self.scale <= 1:
            return 1
        return 3 if self.image_scale > 0 else 2

    def at(self, part: float) -> float:
        """The scale when `part` (0 .. 1) of the frame's sets are being or have been predicted."""
        least = self.min_scale or self.scale
        return (self.scale - least) * part + least

    def expand_text(self, text: jax.Array, empty: jax.Array) -> jax.Array:
        """Text tokens [B, K, E], those of the empty prompt -> [passes * B, K, E]."""
        return jnp.concatenate([text, empty, empty][: self.passes])

    def expand_video(self, tokens: jax.Array, begin: jax.Array) -> jax.Array:
        """Video tokens [B, K, E] -> [passes * B, K, E]; the begin token [E] hides the past from the second pass."""
        second = jnp.broadcast_to(begin.astype(tokens.dtype), tokens.shape) if self.passes == 3 else tokens
        return jnp.concatenate([tokens, second, tokens][: self.passes])

    def expand(self, x: jax.Array) -> jax.Array:
        """[B, ...] -> [passes * B, ...]."""
        return jnp.concatenate([x] * self.passes) if self.passes > 1 else x

    def combine(self, prediction: jax.Array, scale: jax.Array | float) -> jax.Array:
        """Predictions of all passes [passes * B, K, D] and the set's scale -> [B, K, D]."""
        if self.passes == 1:
            return prediction
        scale = jnp.asarray(scale, prediction.dtype)
        if self.passes == 2:
            text, empty = jnp.split(prediction, 2)
            return self._renormed(empty + scale * (text - empty), text)
        text, empty, image = jnp.split(prediction, 3)
        x = self._renormed(empty + scale * (text - image), text)
        return x + jnp.asarray(self.image_scale, x.dtype) * (image - empty)

    def _renormed(self, x: jax.Array, reference: jax.Array) -> jax.Array:
        if self.renormalisation >= 1:
            return x
        norms = (
            jnp.sqrt(jnp.sum(jnp.square(part.astype(jnp.float32)), axis=(1, 2), keepdims=True))
            for part in (reference, x)
        )
        factor = jnp.clip(next(norms) / next(norms), self.renormalisation, 1.0)
        return x * factor.astype(x.dtype)

    def guided_steps(self, chain: Chain) -> int:
        """How many of a chain's first steps are guided; the others run one pass."""
        if self.passes == 1:
            return 0
        below = chain.timesteps < self.truncation
        return int(below.argmax()) if below.any() else len(chain)
