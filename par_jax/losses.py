"""The training objective: diffusion losses of frames and of actions with equal weight (paper eq. 11)."""

import jax
import jax.numpy as jnp

from par_jax.diffusion import SCHEDULES
from par_jax.model.par import PAR
from par_jax.nn.layers import patchify
from par_jax.sampling import decode_actions
from par_jax.sets import random_order
from par_jax.sharding import over_rows
from par_jax.types import Batch

Metrics = dict[str, jax.Array]


def policy_loss(model: PAR, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Teacher forcing over all packages at once (paper section 4.2.6).

    A share `history_dropout` of the sequences sees no earlier package and no executed action: a policy that may
    copy the expert's past never learns to look. The frame loss is estimated on a random `frame_share` of the
    frames, which leaves its expectation as it is.

    Args:
      model: with parameters and inputs in the dtype of the computation.
      batch: B sequences of N packages.
      key: all of the step's randomness.

    Returns:
      The loss [] float32, and its parts `frame_loss` and `action_loss`.
    """
    train = model.config.train
    keys = jax.random.split(key, 4)
    alone = jax.random.bernoulli(keys[0], train.history_dropout, batch.has_past.shape)
    z_o, z_a = encode(model, batch, alone, keys[1])
    frame = frame_loss(model, z_o, batch, keys[2])
    action = action_loss(model, z_a, batch, keys[3])
    return frame + action, {"frame_loss": frame, "action_loss": action}


def encode(model: PAR, batch: Batch, alone: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Z_O [B, N, K_o, E] and Z_A [B, N, L, E] of a batch.

    Args:
      alone: [B] bool, sequences without history: neither earlier packages nor executed actions are seen.
      key: draws where in time each sequence lies, so that long episodes hold nothing new; None for time 0.
    """
    b, n = batch.valid.shape[:2]
    first = jnp.zeros((b, 1), jnp.int32)
    if key is not None:
        first = jax.random.randint(key, (b, 1), 0, model.config.model.max_time)
    time = (first + jnp.arange(n)).astype(jnp.float32)
    known = (batch.has_past[:, None] | (jnp.arange(n) > 0)) & ~alone[:, None]
    return model.encode(batch.latents[:, :n], batch.actions[:, :n], known, batch.text, time, alone)


def action_loss(model: PAR, z_a: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
    """Diffusion loss of the chunks A_1 .. A_N, with `draws` times each (paper section 4.3)."""
    schedule, draws = SCHEDULES[model.config.diffusion.schedule], model.config.diffusion.draws
    target = batch.actions[:, 1:]
    b, n = target.shape[:2]
    target, z = target.reshape(b * n, *target.shape[2:]), z_a.reshape(b * n, *z_a.shape[2:])

    def one(key: jax.Array) -> jax.Array:
        t_key, noise_key = jax.random.split(key)
        t = schedule.draw(t_key, (b * n,))
        noise = jax.random.normal(noise_key, target.shape, target.dtype)
        out = model.action_head(schedule.noised(target, noise, t), schedule.timestep(t), z)
        return _squared(out, schedule.target(target, noise))

    error = jnp.mean(jax.vmap(one)(jax.random.split(key, draws)), axis=0)
    return _mean(error.reshape(b, n, -1), batch.valid)


def frame_loss(model: PAR, z_o: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
    """Diffusion loss of the hidden tokens of O_1 .. O_N, masked as NOVA masks (paper section 4.2.3)."""
    m, train = model.config.model, model.config.train
    schedule, draws = SCHEDULES[model.config.diffusion.schedule], model.config.diffusion.draws
    pick_key, ratio_key, order_key, draw_key = jax.random.split(key, 4)

    frames = patchify(batch.latents[:, 1:], m.frame_patch)
    b, n, k, _ = frames.shape
    some = random_order(pick_key, 1, b * n)[0][0, : max(1, round(train.frame_share * b * n))]
    frames, z = (over_rows(x.reshape(b * n, *x.shape[2:])[some]) for x in (frames, z_o))
    there = batch.frame_valid.reshape(-1)[some]

    least, most = m.mask_ratio
    spread = jax.random.truncated_normal(ratio_key, (least - 1) / 0.25, (most - 1) / 0.25, some.shape)
    count = jnp.round(-0.25 * spread * k).astype(jnp.int32)
    order, rank = random_order(order_key, len(some), k)
    hidden = (rank >= count[:, None]) & there[:, None]
    condition = model.frame_encoder(frames, z, order[:, : round((1 - least) * k) + 1], count)

    def one(key: jax.Array) -> jax.Array:
        t_key, noise_key = jax.random.split(key)
        t = schedule.draw(t_key, (len(some), k))
        noise = jax.random.normal(noise_key, frames.shape, frames.dtype)
        out = model.frame_head(schedule.noised(frames, noise, t), schedule.timestep(t), condition)
        return _squared(out, schedule.target(frames, noise))

    return _mean(jnp.mean(jax.vmap(one)(jax.random.split(draw_key, draws)), axis=0), hidden)


def policy_errors(model: PAR, batch: Batch, key: jax.Array) -> Metrics:
    """How far sampled chunks lie from the expert's, as mean absolute error of scaled actions.

    Returns:
      `teacher_forced`: all chunks, the true history given. `history_masked`: all chunks, none given.
      `chunk_0`: the episodes' first chunks (nan where the batch holds none). Judge a policy by the last two.
    """
    b = batch.has_past.shape[0]
    errors = {}
    for name, alone in (("teacher_forced", False), ("history_masked", True)):
        _, z_a = encode(model, batch, jnp.full(b, alone))
        _, n, chunk, width = z_a.shape
        out = decode_actions(model, z_a.reshape(b * n, chunk, width), key).reshape(b, n, chunk, -1)
        error = jnp.mean(jnp.abs(out - batch.actions[:, 1:]), axis=-1)
        errors[name] = _mean(error, batch.valid)
        first = batch.valid[:, 0] & ~batch.has_past[:, None]
        errors["chunk_0"] = jnp.sum(jnp.where(first, error[:, 0], 0)) / jnp.sum(first, dtype=error.dtype)
    return errors


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2, axis=-1)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where, dtype=values.dtype), 1)
