"""Every random number that our losses and samplers draw of a key, so that PyTorch can be given the same ones."""

import jax
import jax.numpy as jnp

from par_jax.diffusion import SCHEDULES
from par_jax.sets import random_order


def action_noise(config, keys, dtype="float32"):
    """Where `sampling.act` begins to denoise: keys [B] -> [B, M * L, A]."""
    m = config.model
    shape = (1, m.lookahead * m.chunk, m.action_dim)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype)[0])(keys)


def policy_draws(config, b, n, key, dtype="float32"):
    """What `losses.policy_loss` draws of `key` for b sequences of n packages, by the names that `Par` reads."""
    m, train, d = config.model, config.train, config.diffusion
    schedule = SCHEDULES[d.schedule]
    keys = jax.random.split(key, 4)
    draws = {
        "alone": jax.random.bernoulli(keys[0], train.history_dropout, (b,)),
        "first": jax.random.randint(jax.random.split(keys[1], 3)[0], (b, 1), 0, m.max_time),
    }

    def diffusion(key, t_shape, shape, shift):
        def one(key):
            t_key, noise_key = jax.random.split(key)
            t = schedule.draw(t_key, t_shape)
            return shift * t / (1 + (shift - 1) * t), jax.random.normal(noise_key, shape, dtype)

        return jax.vmap(one)(jax.random.split(key, d.draws))

    pick_key, ratio_key, order_key, draw_key = jax.random.split(keys[2], 4)
    height, width = config.latent_size
    k = height * width // m.frame_patch**2
    some = random_order(pick_key, 1, b * n)[0][0, : max(1, round(train.frame_share * b * n))]
    least, most = m.mask_ratio
    spread = jax.random.truncated_normal(ratio_key, (least - 1) / 0.25, (most - 1) / 0.25, some.shape)
    draws |= {"some": some, "count": jnp.round(-0.25 * spread * k).astype(jnp.int32)}
    draws["order"] = random_order(order_key, len(some), k)[0]
    token = m.frame_patch**2 * config.vae.latent_channels
    draws["frame_t"], draws["frame_noise"] = diffusion(draw_key, (len(some), k), (len(some), k, token), d.frame_shift)

    draft_key, action_key = jax.random.split(keys[3])
    draws["action_t"], draws["action_noise"] = diffusion(
        action_key, (b * n,), (b * n, m.lookahead * m.chunk, m.action_dim), d.action_shift
    )
    draws["draft_noise"] = action_noise(config, jax.random.split(draft_key, b * n), dtype)
    return draws
