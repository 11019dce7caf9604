import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import sampling
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from tests.model.conftest import SMALL, par, params  # noqa: F401


def test_frames_have_their_shape_and_depend_on_key_and_condition(par, params):  # noqa: F811
    decode = jax.jit(lambda params, *given: sampling.decode_frame(par.bind(params), *given))
    z_o = jax.random.normal(jax.random.key(0), (2, SMALL.frame_tokens, SMALL.model.width))
    keys, others = jax.random.split(jax.random.key(0)), jax.random.split(jax.random.key(1))
    frame, same, other_key, other_z, alone = (
        decode(params, z, k) for z, k in ((z_o, keys), (z_o, keys), (z_o, others), (2 * z_o, keys), (z_o[1:], keys[1:]))
    )
    assert frame.shape == (2, *SMALL.latent_size, SMALL.vae.latent_channels)
    assert jnp.all(frame == same) and not jnp.any(frame == other_key) and not jnp.any(frame == other_z)
    np.testing.assert_allclose(frame[1:], alone, atol=1e-4)


def test_a_frames_times_are_moved_towards_noise_where_it_was_trained_so(params, monkeypatch):  # noqa: F811
    told = []

    def predict_set(encoder, head, chain, x, *_):
        told.append(chain.timesteps)
        return x

    monkeypatch.setattr(sampling, "predict_set", predict_set)
    z_o = jnp.zeros((1, SMALL.frame_tokens, SMALL.model.width))
    for shift in (1.0, 4.0):
        diffusion = dataclasses.replace(SMALL.diffusion, frame_steps=2, frame_shift=shift)
        config = dataclasses.replace(SMALL, diffusion=diffusion)
        moved = Functional(lambda rngs, config=config: PAR(config, rngs=rngs))
        sampling.decode_frame(moved.bind(params), z_o, jax.random.split(jax.random.key(0), 1))
    np.testing.assert_allclose(told[0], [1000.0, 500.0])
    np.testing.assert_allclose(told[-1], [1000.0, 800.0])


@pytest.mark.parametrize("robots", [1, 5])
def test_a_robot_acts_as_it_would_alone(par, params, robots):  # noqa: F811
    """Whatever robots act beside it, and however far they are: heads are vmapped over robots."""
    m = SMALL.model
    rng = np.random.default_rng(0)
    act = jax.jit(lambda p, *a: sampling.act(par.bind(p), *a))
    latents = jnp.asarray(rng.normal(size=(3, robots, *SMALL.latent_size, SMALL.vae.latent_channels)), jnp.float32)
    text = jnp.asarray(rng.integers(0, 32, (robots, SMALL.text.tokens)), jnp.int32)
    keys = jax.random.split(jax.random.key(7), robots)

    def run(rows):
        cache = sampling.start(par.bind(params), text[rows])
        executed = jnp.zeros((len(text[rows]), m.chunk, m.action_dim))
        for seen in latents:
            cache, executed, ahead, _ = act(params, cache, seen[rows], executed, keys[rows])
        assert ahead.shape == (len(text[rows]), 0, m.action_dim)
        return executed

    np.testing.assert_allclose(run(slice(None))[-1:], run(slice(robots - 1, robots)), rtol=1e-4, atol=1e-5)
