"""Released policies: small, whole, refused where they are damaged, and acting as the run that they come from."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import beginning, release, runs, stages
from par_jax.acting import acting, acting_params
from par_jax.checkpoint import load_params
from par_jax.config import PHYSGEN, TINY, LoRAConfig
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import DECODER, VAE
from par_jax.nn.functional import Functional
from par_jax.policy import Policy
from par_jax.tasks import get_task
from par_jax.trees import flatten
from tests.demos import SIZE, SMALL, make_demos, make_run

CONFIG = dataclasses.replace(SMALL, lora=LoRAConfig(rank=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with made-up parameters, adapters among them."""
    base = tmp_path_factory.mktemp("release")
    run = runs.Run(("pushcube",), CONFIG, (make_demos(base / "data"),), base / "run")
    meta = run.meta("vae", run.episodes()) | {"complete": True}
    make_run(run.workdir / "vae", lambda rngs: VAE(CONFIG.vae, rngs=rngs), meta)
    make_run(run.workdir, lambda rngs: PAR(CONFIG, rngs=rngs), run.meta("policy", run.episodes()))
    make_run(run.workdir / "base", lambda rngs: PAR(SMALL, rngs=rngs), run.meta("base", run.episodes()))
    return run


@pytest.fixture(scope="module")
def released(run):
    release.release(run.workdir, run.workdir.parent / "small")
    release.release(run.workdir, run.workdir.parent / "framed", frames=True)
    return run.workdir.parent


def _act(folder, predict=False):
    policy = Policy.load(folder)
    carry = policy.init(jax.random.key(0), get_task("pushcube").instruction)
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    _, actions, info = policy.act(carry, picture, predict)
    return np.asarray(actions), info.predicted


def test_it_acts_as_the_run_does_but_for_rounding(run, released):
    (wanted, frame), (small, none), (framed, shown) = (
        _act(folder, predict=True) for folder in (run.workdir, released / "small", released / "framed")
    )
    np.testing.assert_allclose(small, wanted, atol=0.05)
    np.testing.assert_array_equal(small, framed)
    assert not np.array_equal(small, wanted)
    assert none is None and np.abs(shown.astype(int) - frame.astype(int)).mean() < 8


def test_it_holds_what_acting_needs_in_bfloat16_and_computes_in_float32(run, released):
    config, meta, params = release.load_policy(released / "small")
    assert config == acting(CONFIG) and config.lora.rank == 0 and meta["step"] == 1
    assert set(meta["dataset"]) == {"control_mode", "picture_size", "cameras"}
    assert not set(params["par"]) & {"frame_encoder", "frame_head"} and not set(params["vae"]) & set(DECODER)
    whole = flatten(acting_params(CONFIG, release.load_policy(run.workdir)[2]))
    assert flatten(params).keys() == whole.keys()
    for name, leaf in flatten(params).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, np.asarray(whole[name], jnp.bfloat16).astype(np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(Policy.load(released / "small").params)} == {jnp.dtype("float32")}
    size = (released / "small" / release.WEIGHTS).stat().st_size
    assert 2 * sum(leaf.size for leaf in whole.values()) < size < 2.2 * sum(leaf.size for leaf in whole.values())


def _bytes(config, frames=False):
    par, vae = Functional(lambda rngs: PAR(config, rngs=rngs)), Functional(lambda rngs: VAE(config.vae, rngs=rngs))
    shapes = {name: jax.eval_shape(module.init, jax.random.key(0)) for name, module in (("par", par), ("vae", vae))}
    return 2 * sum(leaf.size for leaf in jax.tree.leaves(acting_params(config, shapes, frames)))


def test_the_tiny_preset_fits_a_repository():
    assert 9 * 2**20 < _bytes(TINY) < 12 * 2**20
    assert _bytes(TINY, frames=True) > 1.5 * _bytes(TINY)


def test_the_acting_model_has_no_adapters_and_frames_only_where_they_are_asked_for_and_learned():
    assert acting(PHYSGEN).lora.rank == 0 and not acting(PHYSGEN).model.predict_frames
    assert acting(PHYSGEN, frames=True).model.predict_frames
    blind = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, predict_frames=False))
    assert not acting(blind, frames=True).model.predict_frames


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: (folder / release.WEIGHTS).unlink(), "weights.safetensors is missing: the folder is not whole"),
        (lambda folder: (folder / "config.json").unlink(), "holds no checkpoint: .*config.json is missing"),
        (lambda folder: (folder / "config.json").write_text('{"config"'), "config.json is damaged"),
        (lambda folder: _cut(folder / release.WEIGHTS, 0), "weights.safetensors is damaged"),
        (lambda folder: _cut(folder / release.WEIGHTS, 100), "weights.safetensors is damaged"),
        (lambda folder: _cut(folder / release.WEIGHTS, -2), "weights.safetensors is damaged"),
        (lambda folder: _flip(folder / release.WEIGHTS), "weights.safetensors is damaged .its checksum is wrong"),
        (lambda folder: _rename(folder / "config.json"), "does not fit this version of par_jax"),
    ],
)
def test_damage_is_one_sentence(released, tmp_path, harm, sentence):
    folder = shutil.copytree(released / "small", tmp_path / "hurt")
    harm(folder)
    with pytest.raises(UserError, match=sentence) as error:
        Policy.load(folder)
    assert "\n" not in str(error.value)


def _cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _rename(path):
    meta = json.loads(path.read_text())
    meta["config"]["model"]["breadth"] = meta["config"]["model"].pop("width")
    path.write_text(json.dumps(meta))


SCALE = {"scaling_factor": 1.5, "shift_factor": -0.25}


@pytest.fixture
def onward(run, released, tmp_path):
    """A run that begins with a released policy whose latents have a scale of their own."""
    small = shutil.copytree(released / "small", tmp_path / "small")
    meta = json.loads((small / "config.json").read_text())
    meta["config"]["vae"] |= SCALE
    (small / "config.json").write_text(json.dumps(meta))
    train = dataclasses.replace(SMALL.vae_train, steps=3, batch=2, warmup=1, learning_rate=0.1, weight_decay=0.5)
    return dataclasses.replace(
        run, config=dataclasses.replace(SMALL, vae_train=train), init=small, workdir=tmp_path / "next"
    )


def test_training_goes_on_from_a_released_policy(onward, tmp_path):
    """What it lacks, the frames' half of the model, is new."""
    wanted = beginning.adopt(onward)
    assert not runs.is_trained(wanted.workdir / "vae")
    assert wanted.config.vae == dataclasses.replace(SMALL.vae, **SCALE)
    given = flatten(release.load_policy(onward.init)[2]["par"])
    ours = flatten(
        beginning.begin(wanted, Functional(lambda rngs: PAR(wanted.config, rngs=rngs)), wanted.episodes())[0]().params
    )
    assert {name.split("/")[0] for name in ours.keys() - given.keys()} == {"frame_encoder", "frame_head"}
    for name, leaf in given.items():
        np.testing.assert_array_equal(ours[name], leaf)
    with pytest.raises(UserError, match="holds a released policy: train a decoder for it first"):
        runs.adopt_vae(onward.init, tmp_path / "vae")


def test_a_decoder_is_trained_for_a_released_policy(onward):
    """Its encoder and its latents' scale stay."""
    vae = dataclasses.replace(onward, workdir=onward.workdir / "vae")
    first, scale = beginning.begin_vae(vae, Functional(lambda rngs: VAE(SMALL.vae, rngs=rngs)))
    assert scale == SCALE
    before = flatten(first().params)
    stages.train_vae(vae)
    config, _, params = load_params(vae.workdir)
    assert runs.is_trained(vae.workdir) and config.vae == dataclasses.replace(SMALL.vae, **SCALE)
    after, given = flatten(params), flatten(release.load_policy(onward.init)[2]["vae"])
    for name, leaf in given.items():
        np.testing.assert_array_equal(before[name], leaf)
        np.testing.assert_allclose(after[name], leaf, rtol=1e-6)
    new = [name for name in after if name not in given and name.endswith("kernel")]
    assert new and all(name.split("/")[0] in DECODER for name in new)
    assert all(np.abs(after[name] - before[name]).max() > 1e-3 for name in new)


def test_a_policy_released_with_its_frames_needs_no_training_to_go_on(run, released, tmp_path):
    wanted = beginning.adopt(
        dataclasses.replace(run, config=SMALL, init=released / "framed", workdir=tmp_path / "next")
    )
    assert runs.is_trained(wanted.workdir / "vae")
    whole = flatten(release.load_policy(released / "framed")[2]["vae"])
    found = flatten(load_params(wanted.workdir / "vae")[2])
    assert found.keys() == whole.keys()
    for name, leaf in whole.items():
        np.testing.assert_array_equal(found[name], leaf)


def test_what_cannot_be_released_or_trained_on_is_told(run, released, tmp_path):
    with pytest.raises(UserError, match="is not empty: name another --out"):
        release.release(run.workdir, released / "small")
    with pytest.raises(UserError, match="holds a vae, not a policy"):
        release.release(run.workdir / "vae", tmp_path / "out")
    with pytest.raises(UserError, match="is released already"):
        release.release(released / "small", tmp_path / "out")
    with pytest.raises(UserError, match="holds a released policy, and no run"):
        load_params(released / "small")
    blind = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, predict_frames=False))
    make_run(
        tmp_path / "run",
        lambda rngs: PAR(blind, rngs=rngs),
        dataclasses.replace(run, config=blind).meta("policy", run.episodes()),
    )
    shutil.copytree(run.workdir / "vae", tmp_path / "run" / "vae")
    with pytest.raises(UserError, match="was trained without predicting frames: leave out --frames"):
        release.release(tmp_path / "run", tmp_path / "out", frames=True)
    assert not (tmp_path / "out").exists()
