"""PhysGen's look-ahead: M chunks denoised together, supervised, and handed on to the next step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import losses, sampling
from par_jax.data.windows import Windows
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.types import Ahead
from tests.model.conftest import SMALL, make_batch, random_params

M = 3
CONFIG = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, lookahead=M, video_depth=1))
L, A = CONFIG.model.chunk, CONFIG.model.action_dim
BASE = jnp.zeros((2, 4, 1, A))


@pytest.fixture(scope="module")
def model():
    make = Functional(lambda rngs: PAR(CONFIG, rngs=rngs))
    return make.bind(random_params(make))


@pytest.fixture(scope="module")
def act(model):
    return jax.jit(lambda *args: sampling.act(model, *args))


@pytest.fixture(scope="module")
def batch():
    return make_batch(CONFIG, b=2, n=4)


def test_windows_hold_the_chunks_that_are_looked_ahead_to():
    actions = np.arange(22, dtype=np.float32)[:, None]
    texts, tasks = [np.zeros(1, np.int32)], np.zeros(1, int)
    windows = Windows([np.zeros((23, 1, 1, 1))], [actions], [-actions], texts, tasks, packages=2, chunk=L, lookahead=M)
    cut, late = ({name: a[0] for name, a in vars(windows.cut(np.array([0]), np.array([at]))).items()} for at in (8, 16))
    assert cut["latents"].shape == (3, 1, 1, 1) and cut["frame_valid"].shape == (2,)
    assert cut["actions"].shape == (1 + M, L, 1) and cut["valid"].shape == (1 + M, L)
    np.testing.assert_array_equal(cut["actions"][..., 0].ravel(), np.minimum(np.arange(8, 24), 21))
    np.testing.assert_array_equal(cut["executed"][..., 0].ravel(), -np.arange(4.0, 12.0))
    # An episode of 22 actions is held for one chunk's time.
    np.testing.assert_array_equal(late["valid"].sum(1), [4, 4, 2, 0])


def test_a_step_gives_the_next_chunk_and_keeps_the_rest(model, act, batch):
    cache = sampling.start(model, batch.text)
    keys = jax.random.split(jax.random.key(0))
    first, actions, ahead, _ = act(cache, batch.latents[:, 0], batch.executed[:, 0], keys)
    assert actions.shape == (2, L, A) and ahead.shape == (2, (M - 1) * L, A)
    np.testing.assert_array_equal(first.ahead, ahead)

    def second(kept):
        cache = dataclasses.replace(first, ahead=kept)
        return act(cache, batch.latents[:, 1], actions, keys)[1]

    assert not np.allclose(second(ahead), second(ahead + 0.5), atol=1e-4)


def test_the_first_step_has_no_look_ahead(model, act, batch):
    cache = sampling.start(model, batch.text)
    keys = jax.random.split(jax.random.key(0))
    other = dataclasses.replace(cache, ahead=cache.ahead + 1.0)
    out = [act(c, batch.latents[:, 0], batch.executed[:, 0], keys)[1] for c in (cache, other)]
    np.testing.assert_array_equal(*out)


def test_training_hands_on_the_models_own_guess_and_never_the_target(model, batch):
    _, z_a = losses.encode(model, batch, jnp.zeros(2, bool))
    ahead = losses.drafts(model, z_a, BASE, jnp.array([False, True]), jax.random.key(3))
    np.testing.assert_array_equal(ahead.known.reshape(2, 4), [[0, 1, 1, 1], [0, 0, 0, 0]])
    none = Ahead(jnp.zeros((8, (M - 1) * L, A)), jnp.zeros(8, bool))
    made = model.action_head.sample(
        z_a.reshape(8, *z_a.shape[2:]), none, jax.random.split(jax.random.key(3), 8), losses.DRAFT_STEPS
    )
    np.testing.assert_allclose(ahead.actions[1], made[0, L:], atol=1e-6)
    np.testing.assert_allclose(ahead.actions[6], made[5, L:], atol=1e-6)
    still = jax.grad(lambda z: losses.drafts(model, z, BASE, jnp.zeros(2, bool), jax.random.key(3)).actions.sum())(z_a)
    assert not still.any()


def test_all_chunks_are_supervised(model, batch):
    """Each valid chunk after a package moves the loss, and no other does."""
    alone = jnp.ones(2, bool)
    _, z_a = losses.encode(model, batch, alone)

    @jax.jit
    @jax.grad
    def slopes(actions, batch):
        batch = dataclasses.replace(batch, actions=actions)
        return losses.action_loss(model, z_a, batch, alone, jax.random.key(1))

    slope = slopes(batch.actions, batch)
    assert (np.abs(slope).sum((2, 3)) > 0).all()
    cut = dataclasses.replace(batch, valid=batch.valid.at[:, 4:].set(False))
    slope = slopes(cut.actions, cut)
    size = np.abs(slope).sum((2, 3))
    # What is no target is still among the noisy actions that its neighbours see.
    assert (size[:, :4] > 0).all() and size[:, 4:].max() < 0.1 * size[:, :4].min()


def test_the_error_is_that_of_the_chunk_which_is_executed(model, batch):
    errors = jax.jit(lambda batch: losses.policy_errors(model, batch, jax.random.key(0)))
    far = dataclasses.replace(batch, actions=batch.actions.at[:, 4:].add(9.0))
    assert errors(batch) == errors(far)
