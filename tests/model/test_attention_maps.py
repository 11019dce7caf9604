import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.config import LoRAConfig
from par_jax.model import attention_maps as module
from par_jax.model.attention_maps import attention_maps
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from tests.model.conftest import SMALL, random_params

N = 6


def _inputs(batch, count=N):
    return batch.latents[0, :count], batch.executed[0, :count], jnp.arange(count) > 0, batch.text[0]


def _made(par, params, batch, count=N):
    make = jax.jit(lambda p, *a: attention_maps(par.bind(p), *a, jax.random.key(0)))
    return make(params, *_inputs(batch, count))


@pytest.fixture(scope="module")
def made(par, params, batch):
    return _made(par, params, batch)


def _assert_same_outputs(par, params, batch, made):
    latents, actions, known, text = (x[None] for x in _inputs(batch))
    time = jnp.arange(N, dtype=jnp.float32)[None]
    own = jax.jit(lambda p, *a: par.bind(p).encode(*a))(params, latents, actions, known, text, time)
    wanted = np.concatenate(own, axis=2)[0]
    assert np.linalg.norm(made.z - wanted) <= 1e-5 * np.linalg.norm(wanted)


def _own(rows, config, n):
    """Rows [.., S] to text [.., K_text] and packages [.., N, K_package]."""
    text, size = config.text.tokens, config.frame_tokens + config.model.chunk
    return rows[..., :text], rows[..., text:].reshape(*rows.shape[:-1], n, size)


@pytest.mark.parametrize(
    "change",
    [
        {"model": dataclasses.replace(SMALL.model, positions="rotary")},
        {"model": dataclasses.replace(SMALL.model, positions="absolute"), "lora": LoRAConfig(rank=2)},
    ],
    ids=["rotary", "absolute-adapters"],
)
def test_the_outputs_computed_with_these_shares_are_the_models_own(batch, change):
    par = Functional(lambda rngs: PAR(dataclasses.replace(SMALL, **change), rngs=rngs))
    params = random_params(par)
    _assert_same_outputs(par, params, batch, _made(par, params, batch))


def test_also_where_rows_and_columns_are_added(par, params, batch, made):
    _assert_same_outputs(par, params, batch, made)


def test_shares_add_up_and_nothing_looks_ahead_or_beyond_the_window(made, config):
    m = config.model
    s = config.text.tokens + N * (config.frame_tokens + m.chunk)
    assert made.heads.shape == (m.video_depth, m.heads, N, s)
    for rows in (made.heads, made.rolled, made.influence):
        np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
        text, packages = _own(np.asarray(rows), config, N)
        assert (text > 0).all()
        for n in range(N):
            assert (packages[..., n, n + 1 :, :] == 0).all() and (packages[..., n, n, : config.frame_tokens] > 0).all()
    _, heads = _own(np.asarray(made.heads), config, N)
    assert (heads[:, :, 5, :3] == 0).all() and (heads[:, :, 5, 3:] > 0).all()


def test_rollout_and_influence_reach_as_far_as_the_layers_carry(made, config):
    """Depth 3 and a window of 3: six packages back, more than there are."""
    for rows in (made.rolled, made.influence):
        assert (_own(np.asarray(rows), config, N)[1][5] > 0).all()


def test_rollout_is_the_product_of_the_layers(par, params, batch, made, config):
    latents, actions, known, text = _inputs(batch)

    def mean(p):
        model, time = par.bind(p), jnp.arange(N, dtype=jnp.float32)
        packages = model.physical_tokens(latents, actions, known, time)[None]
        return module._encode(model.video_encoder, model.text_embed(text[None]), packages, time[None])[1][:, 0]

    product = np.eye(made.rolled.shape[-1])
    for layer in np.asarray(jax.jit(mean)(params), np.float64):
        product = (layer + np.eye(len(layer))) / 2 @ product
    _, rows = _own(product.T, config, N)
    wanted = rows[..., config.frame_tokens :].mean(-1).T
    np.testing.assert_allclose(made.rolled, wanted, rtol=1e-4, atol=1e-7)


def test_later_packages_change_nothing(par, params, batch, made):
    few = _made(par, params, batch, 4)
    size = few.rolled.shape[-1]
    np.testing.assert_allclose(few.heads, made.heads[:, :, :4, :size], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(few.influence, made.influence[:4, :size], rtol=1e-3, atol=1e-7)


def test_influence_is_what_a_small_change_does(par, params, batch, made, config):
    """Tokens of the newest frame: the order by influence is the order by the outputs' change, nearly."""
    latents, actions, known, text = _inputs(batch)

    @jax.jit
    def moved(shift):
        model, time = par.bind(params), jnp.arange(N, dtype=jnp.float32)[None]
        packages = model.physical_tokens(latents, actions, known, time[0])[None] + shift
        return model.video_encoder(model.text_embed(text[None]), packages, time)[0, -1, config.frame_tokens :]

    rng, changes = np.random.default_rng(0), []
    for token in range(config.frame_tokens):
        shift = np.zeros((64, N, config.frame_tokens + config.model.chunk, config.model.width), np.float32)
        shift[:, -1, token] = 1e-2 * rng.normal(size=(64, config.model.width))
        changes.append(np.sqrt(np.mean([np.square(moved(s) - moved(0 * s)).sum() for s in shift])))
    influence = _own(np.asarray(made.influence), config, N)[1][-1, -1, : config.frame_tokens]
    assert np.corrcoef(influence, changes)[0, 1] > 0.8
