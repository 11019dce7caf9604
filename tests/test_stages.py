import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import runs, stages
from par_jax.checkpoint import Checkpoints, load_params
from par_jax.config import to_dict
from par_jax.data.episodes import Episodes
from par_jax.data.latents import latents_dir
from par_jax.data.windows import Windows, validation_batches
from par_jax.errors import UserError
from par_jax.losses import policy_loss
from par_jax.model.par import PAR
from par_jax.model.text import tokenize
from par_jax.nn.functional import Functional
from par_jax.runs import Run
from par_jax.train import make_train_step
from par_jax.workdir import write_json
from tests.demos import SMALL, TWO_CAMERAS, make_demos


def make_vae(folder, value, complete=True, stage="vae"):
    """A VAE's folder as training leaves it, with made-up parameters."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(4, {"ema": {"kernel": np.full(5, value, np.float32)}}, {})
    checkpoints.wait()
    checkpoints.close()
    write_json(folder / "config.json", {"config": to_dict(SMALL), "stage": stage, "complete": complete})
    return folder


def test_an_adopted_vae_is_all_there(tmp_path):
    source, target = make_vae(tmp_path / "source", 1.0), tmp_path / "run" / "vae"
    runs.adopt_vae(source, target)
    runs.adopt_vae(source, target)
    assert runs.is_trained(target)
    config, meta, params = load_params(target)
    assert (config, meta["step"], meta["stage"]) == (SMALL, 4, "vae")
    np.testing.assert_array_equal(params["kernel"], np.full(5, 1.0))


def test_what_an_adopted_vae_has_encoded_is_not_encoded_again(tmp_path):
    source, target = make_vae(tmp_path / "source", 1.0), tmp_path / "run" / "vae"
    runs.adopt_vae(source, target)
    made = latents_dir(source) / "latents-0.npy"
    made.parent.mkdir()
    made.write_bytes(b"numbers")
    (made.parent / "latents-1.part").write_bytes(b"half")
    for _ in range(2):
        runs.adopt_vae(source, target)
        assert [path.name for path in latents_dir(target).iterdir()] == [made.name]
    assert (latents_dir(target) / made.name).samefile(made)


def test_a_vae_is_not_swapped_under_a_policy(tmp_path):
    runs.adopt_vae(make_vae(tmp_path / "first", 1.0), tmp_path / "vae")
    with pytest.raises(UserError, match="holds another VAE"):
        runs.adopt_vae(make_vae(tmp_path / "second", 2.0), tmp_path / "vae")


@pytest.mark.parametrize("wrong", [{"complete": False}, {"stage": "policy"}])
def test_only_a_trained_vae_is_adopted(tmp_path, wrong):
    with pytest.raises(UserError, match="holds no trained VAE"):
        runs.adopt_vae(make_vae(tmp_path / "source", 1.0, **wrong), tmp_path / "vae")


def test_a_vae_of_another_shape_is_refused(tmp_path):
    data = make_demos(tmp_path / "data")
    make_vae(tmp_path / "run" / "vae", 1.0)
    wider = dataclasses.replace(SMALL, vae=dataclasses.replace(SMALL.vae, latent_channels=16))
    with pytest.raises(UserError, match="latent_channels: 4 != 16"):
        stages.train_policy(Run(("pushcube",), wider, (data,), tmp_path / "run"))


def test_meta_says_what_the_numbers_depend_on(tmp_path):
    run = Run(("pushcube",), SMALL, (make_demos(tmp_path / "data"),), tmp_path / "run", seed=3)
    meta = run.meta("policy", run.episodes())
    assert (meta["stage"], meta["tasks"], meta["seed"]) == ("policy", ["pushcube"], 3)
    assert meta["config"] == to_dict(SMALL)
    assert meta["dataset"] == Episodes(*run.data).meta
    assert len(meta["statistics"]["low"]) == 8
    assert meta["versions"]["jax"] == jax.__version__


def test_relative_actions_are_scaled_about_the_begin_and_moves_stay_as_they_are(tmp_path):
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, relative_actions=True))
    run = Run(("pushcube",), config, (make_demos(tmp_path / "data"),), tmp_path / "run")
    episodes = run.episodes()
    low, high = (np.array(run.statistics(episodes)[name]) for name in ("low", "high"))
    np.testing.assert_allclose(low[:-1] + high[:-1], 0.0, atol=1e-12)  # their joints begin at 0
    assert run.relative(episodes) and low[-1] != -high[-1]
    meta = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(meta | {"control_mode": "pd_ee_delta_pose"}))
    moves = run.episodes()
    plain = dataclasses.replace(run, config=SMALL)
    model = dataclasses.replace(SMALL.model, one_scale=True)
    alike = dataclasses.replace(run, config=dataclasses.replace(SMALL, model=model)).statistics(moves)
    assert len(set(np.subtract(alike["high"], alike["low"])[:-1].round(9))) == 1
    assert not run.relative(moves) and run.statistics(moves) == plain.statistics(moves)


def test_a_camera_that_is_missing(tmp_path):
    run = stages.Run(("pushcube",), TWO_CAMERAS, (make_demos(tmp_path / "data"),), tmp_path / "run")
    with pytest.raises(UserError, match="no pictures of camera hand: train with --cameras=render, or collect"):
        run.episodes()
    both = make_demos(tmp_path / "both", cameras=("render", "hand"))
    assert len(dataclasses.replace(run, data=(both,)).episodes()) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_policy_step_keeps_its_state_s_types(dtype):
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, dtype=dtype))
    rng, channels = np.random.default_rng(0), config.vae.latent_channels
    windows = Windows(
        latents=[rng.normal(size=(31, *config.latent_size, channels)).astype(np.float16) for _ in range(2)],
        actions=[rng.normal(size=(30, 8)).astype(np.float32) for _ in range(2)],
        executed=[rng.normal(size=(30, 8)).astype(np.float32) for _ in range(2)],
        texts=[tokenize("go", config.text.tokens, config.text.vocabulary)],
        tasks=np.zeros(2, int),
        packages=config.train.packages,
        chunk=config.model.chunk,
    )
    (batch,) = validation_batches(windows, np.arange(2), 4, 1)
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    first_state = runs.first_state(par, config.train, 0)

    def loss(params, batch, key):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        return policy_loss(par.bind(params), batch, key)

    state = jax.eval_shape(first_state)
    after, metrics = jax.eval_shape(make_train_step(loss, config.train), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same))
    assert metrics["loss"].dtype == metrics["action_loss"].dtype == jnp.float32
