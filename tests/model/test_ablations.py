"""The models of both papers' ablations and of the baselines: they train, act step by step as in one pass, and lack what
they shall lack.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import losses, sampling
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.types import Ahead
from par_jax.variants import POLICIES, VARIANTS, vary
from tests.model.conftest import SMALL, both_conditions, make_batch, random_params

N = 3


def _small(name):
    base = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, lookahead=2, video_depth=1))
    return vary(base, "full", name) if name in POLICIES else vary(base, name)


# What they switch off, bct or no_transformer switches off as well; the rest are sizes.
_LIKE_OTHERS = {"dp", "no_history", "no_lookahead"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in _LIKE_OTHERS else [])
        for name in sorted({*VARIANTS, *POLICIES} - {"full", "from_scratch", "par"})
    ],
)
def made(request):
    config = _small(request.param)
    make = Functional(lambda rngs: PAR(config, rngs=rngs))
    batch = dataclasses.replace(make_batch(config, b=6, n=N), has_past=jnp.zeros(6, bool))
    return request.param, config, make, random_params(make), batch


def test_steps_equal_the_pass_over_all_packages(made):
    _, _, make, params, batch = made
    z_o, z_a = jax.jit(lambda p: losses.encode(make.bind(p), batch, jnp.zeros(6, bool)))(params)
    cache = jax.jit(lambda p: sampling.start(make.bind(p), batch.text))(params)
    step = jax.jit(lambda p, *args: both_conditions(make.bind(p), *args))
    for n in range(N):
        cache, step_o, step_a = step(params, cache, batch.latents[:, n], batch.executed[:, n])
        np.testing.assert_allclose(step_o, z_o[:, n], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(step_a, z_a[:, n], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_the_policy_acts(made):
    variant, config, make, params, batch = made
    grads, metrics = jax.jit(
        jax.grad(lambda p: losses.policy_loss(make.bind(p), batch, jax.random.key(3)), has_aux=True)
    )(params)
    assert ("frame_loss" in metrics) == (variant not in ("no_transformer", "no_frames", "bct", "dp"))
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    still = {jax.tree_util.keystr(path, simple=True, separator="/") for path, g in flat if not np.abs(g).sum() > 0}
    # Where no executed actions are seen, all action tokens are begin-of-action tokens.
    unseen = {name for name in still if name.startswith("action_tokenizer/p")}
    assert still == (unseen if variant in ("no_history", "bct", "dp") else set()), still
    assert bool(unseen) == bool(still)
    keys = jax.random.split(jax.random.key(0), 6)

    @jax.jit
    def act(params):
        model = make.bind(params)
        return sampling.act(model, sampling.start(model, batch.text), batch.latents[:, 0], batch.executed[:, 0], keys)

    _, actions, ahead, _ = act(params)
    assert actions.shape == (6, 4, 7) and np.isfinite(actions).all()
    assert ahead.shape[1] == (config.model.lookahead - 1) * 4


@pytest.mark.parametrize(("name", "reach"), [("full", 3), ("bct", 3), ("dp", 2)])
def test_baselines_see_observations_and_no_actions(name, reach):
    """Which of the inputs the last of three packages depends on, by gradients; in one layer the window is the reach."""
    config = _small(name)
    make = Functional(lambda rngs: PAR(config, rngs=rngs))
    params = random_params(make)
    batch = dataclasses.replace(make_batch(config, n=N), has_past=jnp.ones(2, bool))

    @jax.jit
    @jax.grad
    def slopes(inputs):
        seen = dataclasses.replace(batch, latents=inputs[0], executed=inputs[1])
        return jnp.sum(losses.encode(make.bind(params), seen, jnp.zeros(2, bool))[1][:, -1] ** 2)

    latents, actions = (
        np.abs(slope).sum((0, *range(2, slope.ndim))) for slope in slopes((batch.latents, batch.executed))
    )
    assert (latents[:N] > 0).tolist() == [N - i <= reach for i in range(N)]
    assert (actions[:N] > 0).tolist() == [name == "full"] * N


@pytest.mark.parametrize("name", ["bct", "dp"])
def test_a_baseline_acts_the_same_whatever_was_executed(name):
    config = _small(name)
    make = Functional(lambda rngs: PAR(config, rngs=rngs))
    params, batch, keys = random_params(make), make_batch(config, n=N), jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def second(executed):
        model = make.bind(params)
        cache, *_ = sampling.act(model, sampling.start(model, batch.text), batch.latents[:, 0], executed, keys)
        return sampling.act(model, cache, batch.latents[:, 1], executed, keys)[1]

    np.testing.assert_array_equal(second(batch.actions[:, 0]), second(batch.actions[:, 1]))


def test_one_package_alone_knows_no_past():
    config = _small("no_history")
    make = Functional(lambda rngs: PAR(config, rngs=rngs))
    params, batch = random_params(make), make_batch(config, n=N)
    other = dataclasses.replace(batch, executed=batch.executed + 1.0, latents=batch.latents.at[:, 0].add(1.0))
    past = dataclasses.replace(other, has_past=jnp.ones(2, bool))
    encode = jax.jit(lambda batch: losses.encode(make.bind(params), batch, jnp.zeros(2, bool))[1])
    a, b = encode(batch), encode(past)
    np.testing.assert_array_equal(a[:, 1:], b[:, 1:])
    assert not np.allclose(a[:, 0], b[:, 0])


@pytest.mark.parametrize("kind", ["mlp", "bins"])
def test_heads_without_diffusion_learn_a_map(kind):
    """A few dozen gradient steps on one batch bring the sampled actions to their targets."""
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, action_head=kind, bins=32))
    make = Functional(lambda rngs: PAR(config, rngs=rngs))
    key = jax.random.key(0)
    z = jax.random.normal(key, (3, 4, 96))
    target = jax.random.uniform(key, (3, 4, 7), minval=-1.0)
    none = Ahead(jnp.zeros((3, 0, 7)), jnp.zeros(3, bool))

    @jax.jit
    def step(params):
        slope = jax.grad(lambda p: make.bind(p).action_head.errors(target, z, none, key).mean())(params)
        return jax.tree.map(lambda p, g: p - 0.3 * jnp.sign(g) * jnp.minimum(jnp.abs(g), 0.03), params, slope)

    params = random_params(make)
    for _ in range(300):
        params = step(params)
    out = make.bind(params).action_head.sample(z, none, jax.random.split(key, 3))
    assert out.shape == target.shape
    assert jnp.abs(out - target).max() < (1 / 32 + 1e-3 if kind == "bins" else 0.1)
