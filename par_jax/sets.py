"""A frame, set by set (paper eq. 7; NOVA section 3.3): which tokens come when, and the prediction of one set."""

import functools
import math

import jax
import jax.numpy as jnp

from par_jax.diffusion import Chain, Denoiser
from par_jax.guidance import Guidance
from par_jax.model.frame_encoder import FrameEncoder
from par_jax.model.frame_head import FrameHead

UNGUIDED = Guidance()
# A large set is computed in the smallest of so many sizes that holds it.
LEVELS = 4


def set_sizes(tokens: int, sets: int) -> list[int]:
    """Tokens a set: few at first and more later, a cosine's share as in MAR and NOVA; empty sets are left out.

    >>> set_sizes(36, 6)
    [1, 4, 6, 7, 9, 9]
    """
    hidden = [round(tokens * math.cos(math.pi / 2 * i / sets)) for i in range(sets + 1)]
    return [size for size in (a - b for a, b in zip(hidden, hidden[1:], strict=False)) if size > 0]


def random_order(key: jax.Array, rows: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Random permutations of 0 .. size-1, and their inverses (the place of each number): [rows, size] int32 each."""
    draws = jax.random.uniform(key, (rows, size))
    order = jnp.argsort(draws, axis=1)
    return order, jnp.zeros_like(order).at[jnp.arange(rows)[:, None], order].set(jnp.arange(size))


def predict_set(
    frame_encoder: FrameEncoder,
    frame_head: FrameHead,
    chain: Chain,
    x: jax.Array,
    condition: jax.Array,
    order: jax.Array,
    begin: jax.Array,
    size: jax.Array,
    largest: int,
    noise: jax.Array,
    draws: jax.Array,
    guidance: Guidance = UNGUIDED,
    scale: jax.Array | float = 1.0,
) -> jax.Array:
    """Fills one set of a frame's tokens.

    Args:
      frame_encoder, frame_head, chain: the model and its sampler.
      x: [B, K, D], the frame so far.
      condition: [P * B, K_o, E], the video encoder's outputs for each of guidance's P passes.
      order: [B, K] int32, ids in the order of their prediction.
      begin, size: [] int32, the set's first place in `order` and its number of tokens.
      largest: static, the number of tokens of the largest set.
      noise: [B, K, D], where the chain starts.
      draws: a key, or each step's noise [N, B, K, D].
      guidance, scale: how passes are combined, and with which scale in this set.

    Returns:
      [B, K, D], x with the set's tokens in place.
    """
    context = frame_encoder.context(guidance.expand(x), condition, guidance.expand(order), begin)
    steps = LEVELS if largest >= 16 * LEVELS else 1
    levels = [-(-largest * (i + 1) // steps) for i in range(steps)]

    def level(room: int) -> jax.Array:
        return _denoise(
            frame_encoder, frame_head, chain, x, context, order, begin, size, room, noise, draws, guidance, scale
        )

    branch = jnp.searchsorted(jnp.asarray(levels), size)
    return jax.lax.switch(branch, [functools.partial(level, room) for room in levels])


def _denoise(
    frame_encoder: FrameEncoder,
    frame_head: FrameHead,
    chain: Chain,
    x: jax.Array,
    context: jax.Array,
    order: jax.Array,
    begin: jax.Array,
    size: jax.Array,
    room: int,
    noise: jax.Array,
    draws: jax.Array,
    guidance: Guidance,
    scale: jax.Array | float,
) -> jax.Array:
    """The set's tokens, in `room` >= size places, from the frame encoder's context."""
    b, k, _ = x.shape
    place = begin + jnp.arange(room)
    ids = jnp.take(order, jnp.minimum(place, k - 1), axis=1)
    target = jnp.where(place < begin + size, ids, k)  # k: dropped when written
    passes, guided = guidance.passes, guidance.guided_steps(chain)
    rows = jnp.arange(b)[:, None]
    c = frame_head.condition_proj(frame_encoder.read(context, guidance.expand(ids)))

    def denoiser(c: jax.Array, guided: bool) -> Denoiser:
        def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
            part = jnp.take_along_axis(y, ids[..., None], axis=1)
            prediction = frame_head.denoise(guidance.expand(part) if guided else part, t[None, None], c)
            # Norms run over the whole frame, in which a token outside of the set predicts itself.
            whole = [y.at[rows, target].set(p, mode="drop") for p in jnp.split(prediction, passes if guided else 1)]
            return guidance.combine(jnp.concatenate(whole), scale) if guided else whole[0]

        return denoise

    keyed = jnp.issubdtype(draws.dtype, jax.dtypes.prng_key)
    first, second = jax.random.split(draws) if keyed else (draws[:guided], draws[guided:])
    sample = noise
    if guided:
        sample = chain[:guided].run(denoiser(c, True), sample, first)
    if guided < len(chain):
        sample = chain[guided:].run(denoiser(c[:b], False), sample, second)
    filled = jnp.take_along_axis(sample, ids[..., None], axis=1)
    return x.at[rows, target].set(filled, mode="drop")
