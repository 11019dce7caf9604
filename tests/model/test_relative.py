"""Actions told as differences from where the arm was last told to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import losses, sampling
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from tests.model.conftest import SMALL, make_batch, random_params

CONFIG = dataclasses.replace(
    SMALL, model=dataclasses.replace(SMALL.model, video_depth=1, relative_actions=True, predict_frames=False)
)
M = CONFIG.model
# A move of the whole arm; the gripper, the last number, stays.
MOVE = jnp.arange(1.0, M.action_dim + 1).at[-1].set(0.0)
OPENED = jnp.zeros(M.action_dim).at[-1].set(1.0)


def make(config=CONFIG):
    made = Functional(lambda rngs: PAR(config, rngs=rngs))
    return made.bind(random_params(made))


@pytest.fixture(scope="module")
def model():
    return make()


def shifted(batch, by):
    """The batch with all its actions elsewhere; every sequence has a past."""
    return dataclasses.replace(
        batch, executed=batch.executed + by, actions=batch.actions + by, has_past=jnp.ones_like(batch.has_past)
    )


def test_where_the_arm_is_makes_no_difference_to_training(model):
    loss = jax.jit(lambda batch: losses.policy_loss(model, batch, jax.random.key(1))[0])
    batch = make_batch(CONFIG, n=3)
    still, moved, opened = (loss(shifted(batch, by)) for by in (0.0, MOVE, OPENED))
    np.testing.assert_allclose(moved, still, rtol=1e-4)
    assert not np.allclose(opened, still, rtol=1e-3)


def test_an_absolute_model_does_see_it():
    absolute = make(dataclasses.replace(CONFIG, model=dataclasses.replace(M, relative_actions=False)))
    batch = make_batch(CONFIG, n=3)
    still, moved = (losses.policy_loss(absolute, shifted(batch, by), jax.random.key(1))[0] for by in (0.0, MOVE))
    assert not np.allclose(moved, still, rtol=1e-3)


def test_a_robot_that_is_elsewhere_goes_on_from_there(model):
    batch, keys = make_batch(CONFIG, n=2), jax.random.split(jax.random.key(0), 2)
    act = jax.jit(lambda *args: sampling.act(model, *args))
    cache, first, *_ = act(sampling.start(model, batch.text), batch.latents[:, 0], batch.executed[:, 0], keys)
    here, there = (act(cache, batch.latents[:, 1], first + by, keys)[1] for by in (0.0, MOVE))
    np.testing.assert_allclose(there, here + MOVE, atol=1e-4)
    # What was executed before the episode began is nobody's.
    other = act(sampling.start(model, batch.text), batch.latents[:, 0], batch.executed[:, 0] + MOVE, keys)[1]
    np.testing.assert_array_equal(other, first)


def test_errors_are_of_the_arm_s_places_whatever_it_is_told_from(model):
    """A policy that decides on the targets errs by nothing, and its errors do not depend on where the arm is."""
    errors = jax.jit(lambda batch: losses.policy_errors(model, batch, jax.random.key(2)))
    batch = make_batch(CONFIG, n=3)
    still, moved = (errors(shifted(batch, by)) for by in (0.0, MOVE))
    for name in ("teacher_forced", "history_masked"):
        np.testing.assert_allclose(moved[name], still[name], rtol=1e-4)
