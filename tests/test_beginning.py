"""Runs that begin with an earlier one, whole or by adapters; adapters merged into plain weights."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from par_jax import beginning, runs, stages
from par_jax.checkpoint import load_params
from par_jax.config import LoRAConfig
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.policy import Policy
from par_jax.runs import Run
from par_jax.tasks import get_task
from par_jax.trees import flatten
from par_jax.variants import vary
from tests.demos import SIZE, SMALL, make_demos, make_run

# Without frames: what a run begins with does not depend on them, and half of the compilation is theirs.
CONFIG = dataclasses.replace(
    SMALL,
    model=dataclasses.replace(SMALL.model, predict_frames=False),
    diffusion=dataclasses.replace(SMALL.diffusion, draws=1),
    train=dataclasses.replace(SMALL.train, steps=2, batch=2, warmup=1),
)


def _par(config):
    return Functional(lambda rngs: PAR(config, rngs=rngs))


def _act(folder):
    policy = Policy.load(folder)
    carry = policy.init(jax.random.key(0), get_task("pushcube").instruction)
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    return policy.act(carry, picture)[1]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with parameters that look trained."""
    base = tmp_path_factory.mktemp("runs")
    run = Run(("pushcube",), CONFIG, (make_demos(base / "data"),), base / "first", log_every=1)
    meta = run.meta("vae", run.episodes()) | {"complete": True}
    make_run(run.workdir / "vae", lambda rngs: VAE(CONFIG.vae, rngs=rngs), meta)
    make_run(run.workdir, lambda rngs: PAR(CONFIG, rngs=rngs), run.meta("policy", run.episodes()))
    return run


@pytest.fixture(scope="module")
def adapted(first):
    """The same, trained further by adapters."""
    config = dataclasses.replace(CONFIG, lora=LoRAConfig(rank=2))
    run = dataclasses.replace(first, config=config, init=first.workdir, workdir=first.workdir.parent / "adapted")
    stages.train_policy(beginning.adopt(run))
    return run


def test_a_run_goes_on_from_another(first, tmp_path):
    """What both models have is taken over, the rest is drawn."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, predict_frames=True))
    run = dataclasses.replace(first, config=config, init=first.workdir, workdir=tmp_path / "second")
    run = beginning.adopt(run)
    draw, frozen = beginning.begin(run, _par(run.config), run.episodes())
    assert frozen is None and runs.is_trained(run.workdir / "vae")
    state = draw()
    before, after = flatten(load_params(first.workdir)[2]), flatten(state.params)
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"frame_encoder", "frame_head"}
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf)
    assert beginning.state_shapes(run, _par(run.config)) == jax.eval_shape(lambda: state)
    scratch = dataclasses.replace(run, config=vary(run.config, "from_scratch"))
    fresh = flatten(beginning.begin(scratch, _par(scratch.config), run.episodes())[0]().params)
    assert not np.array_equal(fresh["patch_embed/kernel"], before["patch_embed/kernel"])


def test_a_vae_is_trained_on_and_a_run_goes_on_with_it(first, tmp_path):
    old = first.workdir / "vae"
    train = dataclasses.replace(CONFIG.vae_train, steps=2, batch=2)
    config = dataclasses.replace(CONFIG, vae_train=train)
    longer = dataclasses.replace(first, config=config, init=old, workdir=tmp_path / "vae")
    stages.train_vae(longer)
    before, after = (flatten(load_params(folder)[2]) for folder in (old, longer.workdir))
    moved = max(float(np.abs(after[name] - leaf).max()) for name, leaf in before.items())
    assert before.keys() == after.keys() and 0 < moved < 0.02

    run = dataclasses.replace(first, init=first.workdir, workdir=tmp_path / "second")
    beginning.adopt(run, longer.workdir)
    for name, leaf in flatten(load_params(run.workdir / "vae")[2]).items():
        np.testing.assert_array_equal(leaf, after[name])
    with pytest.raises(UserError, match="holds no trained VAE"):
        stages.train_vae(dataclasses.replace(longer, init=first.workdir, workdir=tmp_path / "other"))
    with pytest.raises(UserError, match="converted NOVA brings its own frame VAE"):
        beginning.adopt(dataclasses.replace(run, init=tmp_path / "nova"), longer.workdir)


def test_the_scale_of_actions_is_kept_where_that_is_asked_for(first, tmp_path):
    other = make_demos(tmp_path / "data", count=9)
    run = dataclasses.replace(first, data=(other,), init=first.workdir, workdir=tmp_path / "second")
    theirs, ours = first.statistics(first.episodes()), run.statistics(run.episodes())
    kept = beginning.adopt(dataclasses.replace(run, keep_scale=True))
    scaled = kept.meta("policy", kept.episodes())["statistics"]
    for name in ("low", "high"):
        assert scaled[name] == theirs[name] != ours[name]
    assert scaled["mean"] == ours["mean"] and scaled["count"] == ours["count"]
    relative = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, relative_actions=True))
    with pytest.raises(
        UserError, match="actions as pd_joint_pos, this run as pd_joint_pos, relative: leave out --keep"
    ):
        beginning.adopt(dataclasses.replace(run, config=relative, keep_scale=True))
    with pytest.raises(UserError, match="converted NOVA knows no actions"):
        beginning.adopt(dataclasses.replace(run, init=tmp_path / "nova", keep_scale=True))


def test_checkpoints_of_adapters_are_small_and_the_base_is_untouched(first, adapted):
    config, _, params = load_params(adapted.workdir)
    before, after = flatten(load_params(first.workdir)[2]), flatten(params)
    assert config.lora.rank == 2 and {name for name in after if "lora" not in name} == set(before)
    for name, leaf in before.items():
        frozen = name.startswith("video_encoder")
        assert np.array_equal(after[name], leaf) or not frozen, name
    assert not np.array_equal(after["action_head/embed/kernel"], before["action_head/embed/kernel"])
    kept = load_file(adapted.workdir / stages.ADAPTERS)
    assert kept and all("lora_" in name for name in kept)
    assert any(kept[name].any() for name in kept if name.endswith("lora_b"))  # they have learned something
    assert (adapted.workdir / "base" / "config.json").exists()


def test_the_same_command_finds_it_finished(adapted):
    assert stages.train_policy(beginning.adopt(adapted)).step == 2


def test_merged_adapters_act_alike(adapted, tmp_path):
    runs.merge_adapters(adapted.workdir, tmp_path / "merged")
    config, meta, params = load_params(tmp_path / "merged")
    assert config.lora.rank == 0 and meta["stage"] == "policy" and not any("lora" in name for name in flatten(params))
    np.testing.assert_allclose(_act(tmp_path / "merged"), _act(adapted.workdir), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has no adapters to merge"):
        runs.merge_adapters(tmp_path / "merged", tmp_path / "twice")
    with pytest.raises(UserError, match="holds a run"):
        runs.merge_adapters(adapted.workdir, tmp_path / "merged")


def test_what_does_not_fit_is_told(first, tmp_path):
    run = dataclasses.replace(first, init=first.workdir, workdir=tmp_path / "run")
    other = dataclasses.replace(CONFIG, name="another")
    with pytest.raises(UserError, match="was trained with preset 'small-test', not 'another'"):
        beginning.adopt(dataclasses.replace(run, config=other))
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, action_head_width=64))
    with pytest.raises(UserError, match="do not fit the model"):
        beginning.begin(dataclasses.replace(run, config=wider), _par(wider), run.episodes())[0]()
    with pytest.raises(UserError, match="give it as --vae"):
        beginning.adopt(dataclasses.replace(run, init=first.workdir / "vae"))
    alone = dataclasses.replace(CONFIG, lora=LoRAConfig(rank=2))
    runs.adopt_vae(first.workdir / "vae", tmp_path / "alone" / "vae")
    with pytest.raises(UserError, match="LoRA adapts weights that are there: give --init"):
        stages.train_policy(dataclasses.replace(first, config=alone, workdir=tmp_path / "alone"))


def test_a_lost_base_is_told(adapted, tmp_path):
    (adapted.workdir / "base" / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="base is missing"):
        load_params(adapted.workdir)
    (tmp_path / "elsewhere").rename(adapted.workdir / "base" / "checkpoints")
