"""The training objective: diffusion losses of frames and of actions with equal weight (paper eq. 11)."""

import dataclasses

import jax
import jax.numpy as jnp

from par_jax.diffusion import schedule_of
from par_jax.model.par import PAR
from par_jax.nn.layers import patchify
from par_jax.nn.placement import over_rows
from par_jax.sets import random_order
from par_jax.types import Ahead, Batch

Metrics = dict[str, jax.Array]

# Denoising steps of a look-ahead in training.
DRAFT_STEPS = 2


def policy_loss(model: PAR, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Teacher forcing over all packages at once (paper section 4.2.6).

    A share `history_dropout` of the sequences sees no earlier package and no executed action, a share
    `action_dropout` earlier frames only: a policy that may copy the expert's past never learns to look. The frame
    loss is estimated on a random `frame_share` of the frames, which leaves its expectation as it is.

    Args:
      model: its parameters' dtype is that of the computation.
      batch: B sequences of N packages, float32.
      key: all of the step's randomness.

    Returns:
      The loss [] float32, and its parts: `frame_loss` and `action_loss`, of what the model predicts.
    """
    config = model.config
    batch = dataclasses.replace(batch, latents=batch.latents.astype(model.dtype))
    keys = jax.random.split(key, 4)
    alone = jax.random.bernoulli(keys[0], config.train.history_dropout, batch.has_past.shape)
    z_o, z_a = encode(model, batch, alone, keys[1])
    parts = {}
    if config.model.predict_frames:
        parts["frame_loss"] = frame_loss(model, z_o, batch, keys[2])
    if config.model.predict_actions:
        parts["action_loss"] = action_loss(model, z_a, batch, alone, keys[3])
    return sum(parts.values(), jnp.float32(0)), parts


def encode(model: PAR, batch: Batch, alone: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Z_O [B, N, K_o, E] and Z_A [B, N, K, E] of a batch.

    Args:
      alone: [B] bool, sequences without history: neither earlier packages nor executed actions are seen.
      key: of training: draws where in time each sequence lies, so that long episodes hold nothing new, which
        sequences' executed actions are hidden, and the noise on the others'. None for time 0 and the truth.
    """
    b, n = batch.frame_valid.shape
    first = jnp.zeros((b, 1), jnp.int32)
    hidden, executed = alone, batch.executed
    if key is not None:
        train = model.config.train
        time_key, hide_key, noise_key = jax.random.split(key, 3)
        first = jax.random.randint(time_key, (b, 1), 0, model.config.model.max_time)
        hidden = alone | jax.random.bernoulli(hide_key, train.action_dropout, alone.shape)
        executed = executed + train.action_noise * jax.random.normal(noise_key, executed.shape, executed.dtype)
    time = (first + jnp.arange(n)).astype(jnp.float32)
    known = _has_past(batch) & ~hidden[:, None]
    text = batch.text.astype(model.dtype) if jnp.issubdtype(batch.text.dtype, jnp.floating) else batch.text
    return model.encode(batch.latents[:, :n], executed, known, text, time, alone)


def _has_past(batch: Batch) -> jax.Array:
    """Which packages hold a chunk that was executed: [B, N] bool."""
    return batch.has_past[:, None] | (jnp.arange(batch.frame_valid.shape[1]) > 0)


def action_loss(model: PAR, z_a: jax.Array, batch: Batch, alone: jax.Array, key: jax.Array) -> jax.Array:
    """Loss of the action head over all M chunks that follow each package (PhysGen: all of them are supervised)."""
    m = model.config.model
    draft_key, key = jax.random.split(key)
    b, n = z_a.shape[:2]
    target = jnp.stack([batch.actions[:, i : i + n] for i in range(m.lookahead)], axis=2)
    valid = jnp.stack([batch.valid[:, i : i + n] for i in range(m.lookahead)], axis=2)
    base = model.base(batch.executed, _has_past(batch))
    target = (target - base[:, :, None]).astype(z_a.dtype)
    ahead = drafts(model, z_a, base, alone, draft_key)
    error = model.action_head.errors(
        target.reshape(b * n, -1, target.shape[-1]), z_a.reshape(b * n, *z_a.shape[2:]), ahead, key
    )
    return _mean(error.reshape(b, -1), valid.reshape(b, -1))


def drafts(model: PAR, z_a: jax.Array, base: jax.Array, alone: jax.Array, key: jax.Array) -> Ahead:
    """The look-ahead of every package, sampled from the package before: [B * N, (M-1) * L, A].

    A rollout's look-ahead is the model's own, and so is this one: the expert's chunks in its place would be the
    targets themselves, and the model would learn to copy them. It is made without a look-ahead of its own and in few
    steps, and no gradient flows through it.

    Args:
      z_a: [B, N, K, E].
      base: [B, N, 1, A] float32, what each package's actions are told from.
      alone: [B] bool, sequences without history, which have no look-ahead either.
      key: of the noise.
    """
    m = model.config.model
    b, n = z_a.shape[:2]
    size = (m.lookahead - 1) * m.chunk
    known = jnp.broadcast_to((jnp.arange(n) > 0) & ~alone[:, None], (b, n)).reshape(-1)
    none = Ahead(jnp.zeros((b * n, size, m.action_dim), z_a.dtype), jnp.zeros(b * n, bool))
    if not size or n == 1:
        return none
    z = jax.lax.stop_gradient(z_a).reshape(b * n, *z_a.shape[2:])
    made = model.action_head.sample(z, none, jax.random.split(key, b * n), DRAFT_STEPS)
    made = jax.lax.stop_gradient(made)[:, m.chunk :].reshape(b, n, size, -1).astype(jnp.float32)
    made = jnp.roll(made + base, 1, axis=1) - base
    return Ahead(made.reshape(b * n, size, -1).astype(z_a.dtype), known)


def frame_loss(model: PAR, z_o: jax.Array, batch: Batch, key: jax.Array) -> jax.Array:
    """Diffusion loss of the hidden tokens of O_1 .. O_N, masked as NOVA masks (paper section 4.2.3)."""
    m, train, diffusion = model.config.model, model.config.train, model.config.diffusion
    schedule = schedule_of(diffusion.schedule, diffusion.frame_shift)
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

    return _mean(jnp.mean(jax.vmap(one)(jax.random.split(draw_key, diffusion.draws)), axis=0), hidden)


def policy_errors(model: PAR, batch: Batch, key: jax.Array) -> Metrics:
    """How far sampled chunks, the next ones, lie from the expert's, as mean absolute error of scaled actions.

    Returns:
      `teacher_forced`: all chunks, the true history given. `history_masked`: all chunks, none given.
      `chunk_0`: the episodes' first chunks (nan where the batch holds none). Judge a policy by the last two.
    """
    b = batch.has_past.shape[0]
    chunk = model.config.model.chunk
    batch = dataclasses.replace(batch, latents=batch.latents.astype(model.dtype))
    base = model.base(batch.executed, _has_past(batch))
    errors = {}
    for name, missing in (("teacher_forced", False), ("history_masked", True)):
        alone = jnp.full(b, missing)
        _, z_a = encode(model, batch, alone)
        n = z_a.shape[1]
        draft_key, sample_key = jax.random.split(key)
        ahead = drafts(model, z_a, base, alone, draft_key)
        out = model.action_head.sample(z_a.reshape(b * n, *z_a.shape[2:]), ahead, jax.random.split(sample_key, b * n))
        out = out[:, :chunk].reshape(b, n, chunk, -1)
        error = jnp.mean(jnp.abs(out.astype(jnp.float32) + base - batch.actions[:, :n]), axis=-1)
        errors[name] = _mean(error, batch.valid[:, :n])
        first = batch.valid[:, 0] & ~batch.has_past[:, None]
        errors["chunk_0"] = jnp.sum(jnp.where(first, error[:, 0], 0)) / jnp.sum(first, dtype=error.dtype)
    return errors


def _squared(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2, axis=-1)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where, dtype=values.dtype), 1)
