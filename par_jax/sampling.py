"""The physical step: cache and observation in, cache and next chunk out; the next frame, set by set, on request."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.diffusion import schedule_of
from par_jax.model.par import PAR
from par_jax.nn.layers import unpatchify
from par_jax.sets import predict_set, random_order, set_sizes
from par_jax.types import Ahead, KVCache


def start(model: PAR, text: jax.Array) -> KVCache:
    """The cache before the first observation: text [B, K_text] int32."""
    return model.video_encoder.start(model.text_embed(text))


def step(model: PAR, cache: KVCache, latents: jax.Array, executed: jax.Array) -> tuple[KVCache, jax.Array, jax.Array]:
    """Takes one package into the cache (paper section 4.2.6).

    Args:
      cache: of B robots.
      latents: [B, h, w, C], the frame seen now.
      executed: [B, L, A] float32, the chunk that led to it; not read where the cache is empty.

    Returns:
      The cache; what `frame_condition` makes Z_O of, [B, K_o, E]; and Z_A [B, K, E], which conditions the next chunk.
    """
    package = model.physical_tokens(latents, executed, cache.time > 0, cache.time.astype(jnp.float32))
    return model.video_encoder.step(cache, package)


def frame_condition(model: PAR, cache: KVCache, waiting: jax.Array) -> jax.Array:
    """What conditions the next frame, after a `step` or an `act`: the cache and waiting [B, K_o, E] -> Z_O, likewise.

    It stands apart so that acting alone does not pay for it.
    """
    return model.video_encoder.frame(cache, waiting)


def act(
    model: PAR, cache: KVCache, latents: jax.Array, executed: jax.Array, keys: jax.Array
) -> tuple[KVCache, jax.Array, jax.Array, jax.Array]:
    """The physical step: looks once and decides (paper section 4.2.6).

    Args:
      cache, latents, executed: as `step` takes them.
      keys: [B], each robot's own.

    Returns:
      The cache, the next chunk [B, L, A], the look-ahead [B, (M-1) * L, A] (which the cache holds too), both float32
      and scaled; and [B, K_o, E] for `frame_condition`.
    """
    known = cache.time > 0
    base = model.base(executed, known)
    ahead = Ahead(cache.ahead - base, known)
    cache, waiting, z_a = step(model, cache, latents, executed)
    chunk = model.config.model.chunk
    actions = model.action_head.sample(z_a, ahead, keys).astype(jnp.float32) + base
    cache = dataclasses.replace(cache, ahead=actions[:, chunk:])
    return cache, actions[:, :chunk], actions[:, chunk:], waiting


def decode_frame(model: PAR, z_o: jax.Array, keys: jax.Array) -> jax.Array:
    """Samples the next frame set by set (paper eq. 7): Z_O [B, K_o, E] and keys [B] -> latents [B, h, w, C].

    Tokens come in random order, few at first and more later (a cosine's share, as in MAR and NOVA).
    """
    return jax.vmap(lambda z, key: _decode_frame(model, z[None], key)[0])(z_o, keys)


def _decode_frame(model: PAR, z_o: jax.Array, key: jax.Array) -> jax.Array:
    config = model.config
    b, k = z_o.shape[0], math.prod(model.frame_encoder.grid)
    order_key, sets_key = jax.random.split(key)
    order, _ = random_order(order_key, b, k)
    sizes = set_sizes(k, config.diffusion.frame_sets)
    begins = np.cumsum([0, *sizes[:-1]])
    chain = schedule_of(config.diffusion.chosen, config.diffusion.frame_shift).chain(config.diffusion.frame_steps)

    def body(x: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        begin, size, key = inputs
        noise_key, chain_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        encoder, head = model.frame_encoder, model.frame_head
        x = predict_set(encoder, head, chain, x, z_o, order, begin, size, max(sizes), noise, chain_key)
        return x, None

    token_dim = config.model.frame_patch**2 * config.vae.latent_channels
    empty = jnp.zeros((b, k, token_dim), z_o.dtype)
    keys = jax.random.split(sets_key, len(sizes))
    x, _ = jax.lax.scan(body, empty, (jnp.asarray(begins, jnp.int32), jnp.asarray(sizes, jnp.int32), keys))
    return unpatchify(x, config.model.frame_patch, *config.latent_size)
