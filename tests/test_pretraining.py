"""A model of videos: it learns which frames follow which, reads no action, and a policy begins with it."""

import dataclasses

import jax
import numpy as np
import pytest

from par_jax import beginning, losses, stages
from par_jax.checkpoint import load_params
from par_jax.data.episodes import MOTION
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.runs import Run
from par_jax.trees import flatten
from par_jax.variants import VIDEO, changed
from tests.demos import SMALL, make_demos
from tests.model.conftest import make_batch
from tests.model.random_vae import make_vae

CONFIG = dataclasses.replace(
    SMALL,
    diffusion=dataclasses.replace(SMALL.diffusion, draws=1),
    train=dataclasses.replace(SMALL.train, steps=2, batch=2, warmup=1),
)
ACTING = {"action_tokenizer", "action_head"}


def _par(config):
    return Functional(lambda rngs: PAR(config, rngs=rngs))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run on videos of two places, one of them a task's demonstrations."""
    base = tmp_path_factory.mktemp("videos")
    data = make_demos(base / "rollball", task="rollball", source=MOTION), make_demos(base / "pushcube")
    run = Run(("rollball", "pushcube"), changed(CONFIG, VIDEO), data, base / "video", log_every=1)
    make_vae(run.workdir / "vae", CONFIG)
    stages.train_policy(run)
    return run


def test_actions_are_not_read():
    config = changed(CONFIG, VIDEO)
    par = _par(config)
    params = par.init(jax.random.key(0))
    assert not ACTING & set(params)
    batch = make_batch(config, n=3)
    other = dataclasses.replace(batch, actions=batch.actions * np.nan, executed=batch.executed * np.nan)
    loss = jax.jit(lambda batch: losses.policy_loss(par.bind(params), batch, jax.random.key(1)))
    (value, parts), again = loss(batch), loss(other)
    assert np.isfinite(value) and set(parts) == {"frame_loss"}
    assert (value, parts) == again


def test_the_past_is_seen():
    config = changed(CONFIG, VIDEO)
    par, batch = _par(config), make_batch(config, n=3)
    params = par.init(jax.random.key(0))

    @jax.jit
    @jax.grad
    def slope(latents):
        seen = dataclasses.replace(batch, latents=latents)
        return (losses.encode(par.bind(params), seen, np.zeros(2, bool))[0][:, 2] ** 2).sum()

    seen = np.abs(slope(batch.latents)).sum((0, 2, 3, 4))
    assert (seen > 0).tolist() == [False, True, True, False]  # two packages of context


def test_a_policy_begins_with_it(pretrained, tmp_path):
    _, meta, params = load_params(pretrained.workdir)
    assert (meta["stage"], meta["tasks"]) == ("video", ["rollball", "pushcube"])
    run = Run(("pushcube",), CONFIG, pretrained.data[1:], tmp_path / "run", init=pretrained.workdir)
    run = beginning.adopt(run)
    state = beginning.begin(run, _par(run.config), run.episodes())[0]()
    before, after = flatten(params), flatten(state.params)
    assert {name.split("/")[0] for name in set(after) - set(before)} == ACTING
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf)


def test_motion_demonstrates_nothing(pretrained, tmp_path):
    run = Run(("rollball",), CONFIG, pretrained.data[:1], tmp_path / "run")
    with pytest.raises(UserError, match="demonstrates nothing: it holds videos for experiments.pretrain"):
        run.episodes()
