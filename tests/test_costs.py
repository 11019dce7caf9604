"""Counted costs against the paper's table and against XLA's own count."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from par_jax import sampling
from par_jax.config import PRESETS
from par_jax.costs import costs
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.trees import flatten
from par_jax.types import Ahead
from tests.model.conftest import SMALL

NONE = Ahead(jnp.zeros((1, 0, 7)), jnp.zeros(1, bool))


def test_par_has_the_papers_size():
    """Table 1, each row within 1%, and the sequence of section 4.2."""
    found = costs(PRESETS["par"])
    table = {
        "Causal Transformer": 608.7e6,
        "Frame De-Tokenizer": 32.8e6,
        "Action De-Tokenizer": 21.1e6,
        "Action Tokenizer": 0.6e6,
    }
    assert found.parameters == pytest.approx(table, rel=0.01)
    assert sum(found.parameters.values()) == pytest.approx(663.2e6, rel=0.001)
    assert found.tokens == {
        "text": 256,
        "packages": 5,
        "frame": 360,
        "action": 8,
        "total": 2096,
        "frame_encoder": 1440,
    }
    # 16 layers of keys and values, 2096 tokens of width 1024, two bytes each.
    assert found.cache_bytes == 2 * 2 * 16 * 2096 * 1024


def test_arithmetic_is_what_xla_counts():
    """With one layer each, so that no loop hides any of it."""
    model = dataclasses.replace(
        SMALL.model, video_depth=1, action_head_depth=1, width=192, action_head_width=128, action_head_heads=2
    )
    config = dataclasses.replace(SMALL, model=model, diffusion=dataclasses.replace(SMALL.diffusion, action_steps=1))
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    shapes = jax.eval_shape(par.init, jax.random.key(0))
    cache = jax.eval_shape(lambda p, t: sampling.start(par.bind(p), t), shapes, jnp.zeros((1, 5), jnp.int32))
    latents = jax.ShapeDtypeStruct((1, *config.latent_size, config.vae.latent_channels), "float32")
    executed = jax.ShapeDtypeStruct((1, 4, 7), "float32")
    z = jax.ShapeDtypeStruct((1, 4, 192), "float32")
    found = costs(config).step_flops

    def count(function, *args):
        return jax.jit(lambda p, *a: function(par.bind(p), *a)).lower(shapes, *args).compile().cost_analysis()["flops"]

    assert found["transformer"] + found["tokenizers"] == pytest.approx(
        count(sampling.step, cache, latents, executed), rel=0.1
    )
    assert found["action head"] == pytest.approx(
        count(lambda model, z: model.action_head.sample(z, NONE, jax.random.split(jax.random.key(0), 1)), z), rel=0.1
    )


def test_frame_vae_counts_its_plain_convolutions():
    """However the machine that counts would compute them."""
    config = PRESETS["par"]
    height, width = config.picture.stitched
    made = jax.eval_shape(Functional(lambda rngs: VAE(config.vae, decodes=False, rngs=rngs)).init, jax.random.key(0))
    convolutions = 0
    for name, leaf in flatten(made["encoder"]).items():
        if leaf.ndim < 4:
            continue
        block = re.match(r"down_blocks/(\d)/(downsamplers)?", name)
        halved = int(block[1]) + bool(block[2]) if block else 0 if name.startswith("conv_in") else 3
        # A causal kernel meets a single picture as the sum of its taps in time.
        convolutions += 2 * math.prod(leaf.shape[-4:]) * (height >> halved) * (width >> halved)
    attention = 4 * (height * width // 64) ** 2 * config.vae.block_out_channels[-1]
    assert costs(config).step_flops["frame VAE"] == pytest.approx(convolutions + attention, rel=0.02)
