import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import sampling
from par_jax.data.pictures import crop, to_unit
from par_jax.model.text import tokenize
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.policy import CHANGED, Policy, changed_picture
from tests.model.conftest import SMALL, par, params, random_params  # noqa: F401

STATISTICS = {"low": [-2.0] * 7, "high": [4.0] * 7}


@pytest.fixture(scope="module")
def policy(params):  # noqa: F811
    vae = random_params(Functional(lambda rngs: VAE(SMALL.vae, rngs=rngs)), seed=2)
    return Policy(SMALL, params, vae, STATISTICS)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, *SMALL.picture.size, 3), np.uint8)


def _run(policy, pictures, predict=False):
    carry, made = policy.init(jax.random.key(5), "Push the cube."), []
    for picture in pictures:
        carry, actions, info = policy.act(carry, picture, predict_frame=predict)
        made.append((np.asarray(actions), info.predicted))
    return made


def test_actions_are_those_of_the_step_in_the_controllers_units(policy, pictures, par, params):  # noqa: F811
    (actions, _), (second, _) = _run(policy, pictures[:2])
    assert actions.shape == (SMALL.model.chunk, SMALL.model.action_dim) and actions.dtype == np.float32

    @jax.jit
    def by_hand(params, vae, views):
        model = par.bind(params)
        latents = vae.encode_frames(to_unit(views))
        cache = sampling.start(model, tokenize("push the cube", SMALL.text.tokens, SMALL.text.vocabulary)[None])
        key, now = jax.random.split(jax.random.key(5))
        cache, first, *_ = sampling.act(model, cache, latents[:1], jnp.zeros((1, 4, 7)), now[None])
        _, now = jax.random.split(key)
        return first, sampling.act(model, cache, latents[1:2], first, now[None])[1]

    vae = Functional(lambda rngs: VAE(SMALL.vae, rngs=rngs)).bind(policy.params["vae"])
    wanted = by_hand(params, vae, crop(pictures[:2], SMALL.picture))
    for got, want in zip((actions, second), wanted, strict=True):
        np.testing.assert_allclose(got, want[0] * 3.0 + 1.0, rtol=1e-3, atol=1e-4)


def test_what_was_executed_in_place_of_a_chunk_is_what_it_remembers(policy, pictures):
    def second(executed):
        carry, actions, _ = policy.act(policy.init(jax.random.key(5), "Push the cube."), pictures[0])
        carry = carry if executed is None else policy.overruled(carry, executed(np.asarray(actions)))
        return np.asarray(policy.act(carry, pictures[1])[1])

    own = second(None)
    np.testing.assert_allclose(second(lambda actions: actions), own, rtol=1e-4, atol=1e-4)
    assert np.abs(second(lambda actions: actions + 3.0) - own).max() > 1e-2


def test_a_changed_picture_is_the_decoder_s_where_it_changes_and_what_was_seen_elsewhere():
    make = Functional(lambda rngs: VAE(SMALL.vae, rngs=rngs))
    vae = make.bind(random_params(make, seed=2))
    seen = np.random.default_rng(3).integers(0, 256, (1, *SMALL.picture.crop, 3), np.uint8)
    latents = vae.encode_frames(to_unit(seen))
    np.testing.assert_array_equal(changed_picture(vae, seen, latents), seen)

    then = np.asarray(vae.decode_frames(latents))
    slightly, strongly = (latents + by for by in (0.01, 1.0))
    change, decoded, made = {}, {}, {}
    for name, other in (("slightly", slightly), ("strongly", strongly)):
        now = np.asarray(vae.decode_frames(other))
        change[name] = np.abs(now - then).max(-1)
        decoded[name] = np.clip((now + 1.0) * 127.5, 0, 255)
        made[name] = np.asarray(changed_picture(vae, seen, other)).astype(float)
    assert change["slightly"].max() < CHANGED
    assert np.abs(made["slightly"] - seen).mean() < 0.3 * np.abs(decoded["slightly"] - seen).mean()
    changed = change["strongly"] > CHANGED
    assert changed.mean() > 0.1
    np.testing.assert_allclose(made["strongly"][changed], decoded["strongly"][changed], atol=0.51)


def test_the_same_seed_gives_the_same_twice_and_predicting_changes_no_action(policy, pictures):
    plain, again, predicting = _run(policy, pictures), _run(policy, pictures), _run(policy, pictures, True)
    for (a, nothing), (b, _), (c, frame) in zip(plain, again, predicting, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert nothing is None
        assert frame.shape == (*SMALL.picture.crop, 3) and frame.dtype == np.uint8
