import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import losses, sampling
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from tests.model.conftest import both_conditions, make_batch, random_params


def _outputs(par, params, batch, alone=False):
    run = jax.jit(lambda p, b, a: losses.encode(par.bind(p), b, a))
    return run(params, batch, jnp.full(batch.has_past.shape, alone))


def _influences(par, params, batch, outputs, alone=False):
    """For each output, |gradient| of its square with respect to every frame [N] and every action [N, L].

    An output is (n, None) for the frame tokens at package n, or (n, k) for its action token k.
    """
    weights_o, weights_a = np.zeros((len(outputs), 6, 1, 1)), np.zeros((len(outputs), 6, 4, 1))
    for i, (n, k) in enumerate(outputs):
        (weights_o if k is None else weights_a)[i, n, k or 0] = 1

    @jax.jit
    def gradient(weight_o, weight_a):
        def scalar(latents, executed):
            changed = dataclasses.replace(batch, latents=latents, executed=executed)
            z_o, z_a = losses.encode(par.bind(params), changed, jnp.full(2, alone))
            return (weight_o * z_o**2).sum() + (weight_a * z_a**2).sum()

        return jax.grad(scalar, argnums=(0, 1))(batch.latents, batch.executed)

    frames, actions = jax.lax.map(lambda w: gradient(*w), (jnp.float32(weights_o), jnp.float32(weights_a)))
    return np.abs(frames).sum((1, 3, 4, 5))[:, :-1], np.abs(actions).sum((1, 4))


def test_gradients_prove_the_mask(par, params, batch, config):
    """A frame token sees no later step and not its own step's actions; an action nothing later than itself."""
    reach = (config.model.context - 1) * config.model.video_depth
    batch = dataclasses.replace(batch, has_past=jnp.ones(2, bool))
    outputs = [(n, k) for n in (0, 2, 5) for k in (None, 0, 1, 2, 3)]
    for (n, k), frames, actions in zip(outputs, *_influences(par, params, batch, outputs), strict=True):
        last = 0 if k is None else k + 1
        assert (frames[n + 1 :] == 0).all() and (actions[n + 1 :] == 0).all() and (actions[n, last:] == 0).all()
        assert (frames[max(0, n - reach) : n + 1] > 0).all() and (actions[max(0, n - reach) : n] > 0).all()
        assert (actions[n, :last] > 0).all()


def test_the_window_bounds_what_one_layer_sees(par, params, batch, config):
    shallow = dataclasses.replace(config, model=dataclasses.replace(config.model, video_depth=1))
    shallow_par = Functional(lambda rngs: PAR(shallow, rngs=rngs))
    (frames,), (actions,) = _influences(shallow_par, random_params(shallow_par), batch, [(5, 2)])
    assert (frames[:3] == 0).all() and (actions[:3] == 0).all()
    assert (frames[3:] > 0).all() and (actions[3:5] > 0).all()


def test_without_history_only_the_own_frame_counts(par, params, batch):
    (frames,), (actions,) = _influences(par, params, batch, [(3, 1)], alone=True)
    assert frames[3] > 0
    assert (np.delete(frames, 3) == 0).all() and (actions == 0).all()


def test_the_first_chunk_counts_only_where_there_was_one(par, params, batch):
    other = dataclasses.replace(batch, executed=batch.executed.at[:, 0].add(1.0))
    (_, before), (_, after) = _outputs(par, params, batch), _outputs(par, params, other)
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])


def _step(par, params, cache, batch, n, robot=slice(None)):
    step = jax.jit(lambda p, *a: both_conditions(par.bind(p), *a))
    return step(params, cache, batch.latents[robot, n], batch.executed[robot, n])


def test_cached_steps_equal_the_uncached_pass(par, params, batch):
    """Also beyond the context: 6 packages pass through a window of 3."""
    batch = dataclasses.replace(batch, has_past=jnp.zeros(2, bool))
    z_o, z_a = _outputs(par, params, batch)
    cache = sampling.start(par.bind(params), batch.text)
    for n in range(6):
        cache, step_o, step_a = _step(par, params, cache, batch, n)
        for step, whole in ((step_o, z_o[:, n]), (step_a, z_a[:, n])):
            assert np.linalg.norm(step - whole) <= 1e-5 * np.linalg.norm(whole)


def test_a_robot_in_a_shared_cache_may_begin_anew_at_any_time(par, params, batch):
    """Robot 0's second episode begins at its package 4: from there on it acts as one that was never there before."""
    cache, fresh = (sampling.start(par.bind(params), batch.text[robots]) for robots in (slice(None), slice(1)))
    for n in range(6):
        if n == 4:
            cache = dataclasses.replace(cache, time=cache.time.at[0].set(0))
        cache, *both = _step(par, params, cache, batch, n)
        if n >= 4:
            fresh, *alone = _step(par, params, fresh, batch, n, slice(1))
            for z, whole in zip(alone, both, strict=True):
                np.testing.assert_allclose(z, whole[:1], rtol=1e-4, atol=1e-5)
    assert cache.time.tolist() == [2, 6]


def test_the_cost_of_a_step_does_not_grow(par, params, batch):
    """The cache has the same shapes after any number of steps, so one compiled step serves them all."""
    cache = sampling.start(par.bind(params), batch.text)
    after = cache
    for n in range(5):
        after, *_ = _step(par, params, after, batch, n)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, after)
    assert (after.time == 5).all()


def test_losses_are_finite_and_reach_every_parameter(par, params, config):
    batch = make_batch(config, b=6, n=2)
    grads, metrics = jax.jit(
        jax.grad(lambda p: losses.policy_loss(par.bind(p), batch, jax.random.key(3)), has_aux=True)
    )(params)
    assert set(metrics) == {"frame_loss", "action_loss"}
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    still = [jax.tree_util.keystr(path) for path, grad in flat if not np.abs(grad).sum() > 0]
    assert still == []


def test_invalid_targets_do_not_count(par, params, batch):
    loss = jax.jit(lambda b: losses.policy_loss(par.bind(params), b, jax.random.key(3))[0])
    cut = dataclasses.replace(
        batch, valid=batch.valid.at[:, 4:].set(False), frame_valid=batch.frame_valid.at[:, 4:].set(False)
    )
    other = dataclasses.replace(cut, latents=cut.latents.at[:, 5:].add(1.0), actions=cut.actions.at[:, 4:].add(1.0))
    assert loss(cut) == loss(other) != loss(batch)


def test_errors_tell_the_three_apart(par, params, batch):
    run = jax.jit(lambda b: losses.policy_errors(par.bind(params), b, jax.random.key(0)))
    errors = run(batch)
    assert set(errors) == {"teacher_forced", "history_masked", "chunk_0"}
    assert errors["teacher_forced"] != errors["history_masked"]
    none = dataclasses.replace(batch, has_past=jnp.ones(2, bool))
    assert np.isnan(run(none)["chunk_0"])
