import dataclasses

import jax
import jax.numpy as jnp
import pytest

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


@pytest.fixture(scope="session")
def params(par):
    """Random parameters without the zeros of a fresh model, behind which nothing could be seen."""
    fresh = par.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def make_batch(config, b=2, n=6, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    m, (h, w) = config.model, config.latent_size
    return Batch(
        latents=jax.random.normal(keys[0], (b, n + 1, h, w, config.vae.latent_channels)),
        actions=jax.random.normal(keys[1], (b, n + 1, m.chunk, m.action_dim)),
        has_past=jnp.arange(b) % 2 == 1,
        valid=jnp.ones((b, n, m.chunk), bool),
        frame_valid=jnp.ones((b, n), bool),
        text=jax.random.randint(keys[2], (b, config.text.tokens), 0, config.text.vocabulary),
    )


@pytest.fixture(scope="session")
def batch():
    return make_batch(SMALL)
