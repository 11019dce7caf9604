"""The physical step: cache and observation in, cache and next chunk out; the next frame, set by set, on request."""

import math

import jax
import jax.numpy as jnp

from par_jax.diffusion import SCHEDULES
from par_jax.model.par import PAR
from par_jax.nn.layers import unpatchify
from par_jax.types import KVCache


def start(model: PAR, text: jax.Array) -> KVCache:
    """The cache before the first observation: text [B, K_text] int32."""
    return model.video_encoder.start(model.text_embed(text))


def step(model: PAR, cache: KVCache, latents: jax.Array, executed: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
    """Takes one package into the cache (paper section 4.2.6).

    Args:
      cache: of B robots.
      latents: [B, h, w, C], the frame seen now.
      executed: [B, L, A], the chunk that led to it; not read where the cache is empty.

    Returns:
      The cache, Z_O [B, K_o, E] and Z_A [B, L, E], which condition the next frame and the next chunk.
    """
    package = model.physical_tokens(latents, executed, cache.time > 0)
    cache, z = model.video_encoder.step(cache, package)
    return cache, *model.split(z)


def decode_actions(model: PAR, z_a: jax.Array, key: jax.Array) -> jax.Array:
    """Samples a chunk from its condition: Z_A [B, L, E] -> [B, L, A]."""
    config = model.config
    noise_key, chain_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (*z_a.shape[:2], config.model.action_dim), z_a.dtype)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return model.action_head(x, jnp.broadcast_to(t, x.shape[:1]), z_a)

    schedule = SCHEDULES[config.diffusion.schedule]
    return schedule.sample(denoise, noise, config.diffusion.action_steps, chain_key)


def decode_frame(model: PAR, z_o: jax.Array, key: jax.Array) -> jax.Array:
    """Samples the next frame set by set (paper eq. 7): Z_O [B, K_o, E] -> latents [B, h, w, C].

    Tokens come in random order, few at first and more later (a cosine's share, as in MAR and NOVA).
    """
    config = model.config
    schedule = SCHEDULES[config.diffusion.schedule]
    b, k = z_o.shape[0], math.prod(model.frame_encoder.grid)
    order_key, sets_key = jax.random.split(key)
    order, rank = random_order(order_key, b, k)
    ends = jnp.asarray(set_ends(k, config.diffusion.frame_sets), jnp.int32)

    def body(x: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        begin, end, key = inputs
        condition = model.frame_encoder(x, z_o, order, jnp.full(b, begin))
        noise_key, chain_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        sample = schedule.sample(
            lambda y, t: model.frame_head(y, t[None, None], condition),
            noise,
            config.diffusion.frame_steps,
            chain_key,
        )
        now = (rank >= begin) & (rank < end)
        return jnp.where(now[..., None], sample, x), None

    token_dim = config.model.frame_patch**2 * config.vae.latent_channels
    empty = jnp.zeros((b, k, token_dim), z_o.dtype)
    keys = jax.random.split(sets_key, len(ends) - 1)
    x, _ = jax.lax.scan(body, empty, (ends[:-1], ends[1:], keys))
    return unpatchify(x, config.model.frame_patch, *config.latent_size)


def random_order(key: jax.Array, rows: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Random permutations of 0 .. size-1, and their inverses (the place of each number): [rows, size] int32 each."""
    draws = jax.random.uniform(key, (rows, size))
    order = jnp.argsort(draws, axis=1)
    return order, jnp.zeros_like(order).at[jnp.arange(rows)[:, None], order].set(jnp.arange(size))


def set_ends(tokens: int, sets: int) -> list[int]:
    """Where each set begins and the last one ends: `sets + 1` numbers from 0 to `tokens`, none equal.

    >>> set_ends(36, 6)
    [0, 1, 5, 11, 18, 27, 36]
    """
    ends = [round(tokens * (1 - math.cos(math.pi / 2 * i / sets))) for i in range(sets + 1)]
    for i in range(1, sets + 1):
        ends[i] = max(ends[i], ends[i - 1] + 1)
    ends[sets] = tokens
    return ends
