"""PAR begins as NOVA: every pretrained tensor in its place, and the same outputs where the masks agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import initialise
from par_jax.config import PRESETS, NovaConfig, PictureConfig
from par_jax.errors import UserError
from par_jax.model.nova import NOVA
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from tests.model.conftest import random_params

FRAMES = 3
# No text: NOVA lets text see the first frame, PAR does not; without it the masks of frames agree.
SMALL = NovaConfig(
    width=48,
    heads=2,
    video_depth=2,
    frame_depth=2,
    frame_head_width=24,
    frame_head_depth=1,
    latent_channels=4,
    latent_size=(8, 12),
    frame_patch=2,
    text_dim=10,
    text_tokens=0,
    video_base=(FRAMES, 2, 3),
    frame_base=(4, 6),
)


def _config(nova):
    small = dataclasses.replace(
        PRESETS["par"],
        picture=PictureConfig(size=(64, 96), crop=(64, 96)),
        model=dataclasses.replace(PRESETS["par"].model, chunk=3, context=FRAMES, action_head_width=16),
    )
    return initialise.fit(small, nova)


@pytest.mark.parametrize("rotary", [False, True])
def test_videos_without_actions_come_out_as_novas(rotary):
    config = dataclasses.replace(SMALL, rotary=rotary)
    nova = Functional(lambda rngs: NOVA(config, rngs=rngs))
    par = Functional(lambda rngs: PAR(_config(config), rngs=rngs))
    pretrained = random_params(nova)
    params, report = initialise.take(random_params(par, seed=1), pretrained)
    assert {name.split("/")[0] for name in report.new} == {"action_head", "action_tokenizer"}
    assert {name.split("/")[0] for name in report.unused} == {"begin", "motion_embed"}

    rng = np.random.default_rng(2)
    latents = jnp.asarray(rng.normal(size=(2, FRAMES, 8, 12, 4)), jnp.float32)
    actions = jnp.asarray(rng.normal(size=(2, FRAMES, 3, 8)), jnp.float32)
    text = jnp.zeros((2, 0, config.width))
    tokens = jnp.asarray(rng.normal(size=(2, 24, 16)), jnp.float32)
    order, count = np.tile(np.arange(24), (2, 1)), np.array([5, 9])

    @jax.jit
    def theirs(pretrained):
        model = nova.bind(pretrained)
        begin = jnp.broadcast_to(pretrained["begin"], (2, 1, 6, config.width))
        first = model.positioned(begin, jnp.zeros(1, jnp.int32), FRAMES)
        made = model.encode_clip(text, latents)
        return first, made, model.frame_encoder(tokens, made[:, 0], order, count)

    @jax.jit
    def ours(params, first, condition):
        model = par.bind(params)
        times = jnp.broadcast_to(jnp.arange(FRAMES, dtype=jnp.float32) - 1, (2, FRAMES))
        # The begin-of-video frame, which PAR does without, in the place of a first frame.
        shifted = jnp.concatenate([jnp.zeros_like(latents[:, :1]), latents[:, :-1]], axis=1)
        packages = model.physical_tokens(shifted, actions, jnp.ones((2, FRAMES), bool), times)
        packages = packages.at[:, 0, :6].set(first[:, 0])
        seen = model.video_encoder(text, packages, times, silent=jnp.ones(2, bool))[:, :, :6]
        aware = model.video_encoder(text, packages, times)[:, :, :6]
        return seen, aware, model.frame_encoder(tokens, condition, order, count)

    first, wanted, frame = theirs(pretrained)
    seen, aware, same = ours(params, first, wanted[:, 0])
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-6)
    assert not np.allclose(aware[:, 1:], wanted[:, 1:], atol=1e-3)
    np.testing.assert_array_equal(same, frame)


def test_the_papers_model_takes_all_but_the_action_parts():
    nova = NovaConfig(1024, 16, 16, 32, 1280, 3, 4, (60, 96), 2, 2560, 256, video_base=(9, 15, 24), frame_base=(30, 48))
    assert initialise.fit(PRESETS["par"], nova) == PRESETS["par"]
    make = Functional(lambda rngs: PAR(PRESETS["par"], rngs=rngs))
    ours = jax.eval_shape(make.init, jax.random.key(0))
    theirs = jax.eval_shape(Functional(lambda rngs: NOVA(nova, rngs=rngs)).init, jax.random.key(0))
    flat, pretrained = initialise.flatten(ours), initialise.flatten(theirs)
    assert all(flat[name].shape == leaf.shape for name, leaf in pretrained.items() if name in flat)
    assert {name.split("/")[0] for name in set(flat) - set(pretrained)} == {"action_head", "action_tokenizer"}


def test_another_shape_is_told():
    config = _config(SMALL)
    nova = Functional(lambda rngs: NOVA(SMALL, rngs=rngs))
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    pretrained = random_params(nova)
    pretrained["patch_embed"]["bias"] = pretrained["patch_embed"]["bias"][:-1]
    with pytest.raises(UserError, match=r"patch_embed/bias: \(47,\) != \(48,\)"):
        initialise.take(random_params(par), pretrained)
    pretrained = random_params(nova) | {"later": jnp.zeros(2)}
    with pytest.raises(UserError, match="later: PAR has no such part"):
        initialise.take(random_params(par), pretrained)


def test_other_pictures_are_told():
    with pytest.raises(UserError, match="sees pictures of 64 x 96 pixels, and preset 'par' shows it 480 x 768"):
        initialise.fit(PRESETS["par"], SMALL)
