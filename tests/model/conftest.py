import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import sampling
from par_jax.config import TINY, PictureConfig, TextConfig
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.types import Batch

# Every axis has a length of its own, so that no reshape survives by chance.
SMALL = dataclasses.replace(
    TINY,
    picture=PictureConfig(size=(56, 72), crop=(32, 48)),
    text=TextConfig(tokens=5, dim=12, vocabulary=32),
    model=dataclasses.replace(
        TINY.model,
        width=96,
        heads=3,
        video_depth=3,
        frame_depth=2,
        action_dim=7,
        chunk=4,
        context=3,
        frame_head_width=40,
        frame_head_depth=2,
        action_head_width=36,
        action_head_depth=2,
        action_head_heads=2,
    ),
    diffusion=dataclasses.replace(TINY.diffusion, frame_sets=3),
)


@pytest.fixture(scope="session")
def config():
    return SMALL


@pytest.fixture(scope="session")
def par():
    return Functional(lambda rngs: PAR(SMALL, rngs=rngs))


def random_params(module, seed=0):
    """Parameters without the zeros of a fresh model, behind which nothing could be seen; made without compiling."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "kernel":
            return jnp.asarray(rng.normal(0, leaf.shape[-2] ** -0.5, leaf.shape), leaf.dtype)
        return jnp.asarray(float(name == "scale") + rng.normal(0, 0.1, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(module.init, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def params(par):
    return random_params(par)


def make_batch(config, b=2, n=6, seed=0):
    rng = np.random.default_rng(seed)
    m, (h, w) = config.model, config.latent_size
    return Batch(
        latents=jnp.asarray(rng.normal(size=(b, n + 1, h, w, config.vae.latent_channels)), jnp.float32),
        executed=jnp.asarray(rng.normal(size=(b, n, m.chunk, m.action_dim)), jnp.float32),
        actions=jnp.asarray(rng.normal(size=(b, n + m.lookahead - 1, m.chunk, m.action_dim)), jnp.float32),
        has_past=jnp.arange(b) % 2 == 1,
        valid=jnp.ones((b, n + m.lookahead - 1, m.chunk), bool),
        frame_valid=jnp.ones((b, n), bool),
        text=jnp.asarray(rng.integers(0, config.text.vocabulary, (b, config.text.tokens)), jnp.int32),
    )


def both_conditions(model, cache, latents, executed):
    """A cached step: the cache, Z_O and Z_A."""
    cache, waiting, z_a = sampling.step(model, cache, latents, executed)
    return cache, sampling.frame_condition(model, cache, waiting), z_a


@pytest.fixture(scope="session")
def batch():
    return make_batch(SMALL)
