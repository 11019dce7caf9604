"""A run that begins with converted NOVA: shapes, frame VAE, instruction and parameters come from the checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from convert.nova_to_flax import convert
from convert.published import PRESETS as PUBLISHED
from convert.random_nova import write_random
from par_jax import beginning, language, pretrained, runs, stages
from par_jax.checkpoint import load_params
from par_jax.config import PRESETS, PictureConfig
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.policy import Policy
from par_jax.runs import Run
from par_jax.tasks import get_task
from par_jax.trees import flatten
from tests.demos import make_demos

SIZE = (32, 64)


@pytest.fixture(scope="module")
def nova(tmp_path_factory):
    """A converted tiny NOVA that can read."""
    base = tmp_path_factory.mktemp("nova")
    write_random(PUBLISHED["tiny"], base / "source")
    tokenizer = Tokenizer(models.WordLevel({"cube": 0, "the": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (base / "source" / "tokenizer").mkdir()
    tokenizer.save(str(base / "source" / "tokenizer" / "tokenizer.json"))
    convert(str(base / "source"), base / "checkpoint")
    return base / "checkpoint"


@pytest.fixture(scope="module")
def run(nova, tmp_path_factory):
    base = tmp_path_factory.mktemp("run")
    par = PRESETS["par"]
    config = dataclasses.replace(
        par,
        picture=PictureConfig(size=SIZE, crop=SIZE, shift=0),
        model=dataclasses.replace(par.model, action_head_width=16, action_head_depth=1, action_head_heads=2),
        train=dataclasses.replace(
            par.train, steps=2, batch=2, packages=2, warmup=1, learning_rate=1e-6, dtype="float32"
        ),
        diffusion=dataclasses.replace(par.diffusion, draws=1, action_steps=2, frame_sets=2, frame_steps=2),
    )
    data = make_demos(base / "data", size=SIZE)
    return Run(("pushcube",), config, (data,), base / "run", init=nova, log_every=1)


def refuse(*_):
    raise AssertionError("encoded again")


def test_what_training_begins_with_is_nova_s(run, nova, capsys, tmp_path):
    begun = beginning.adopt(dataclasses.replace(run, workdir=tmp_path / "run"))
    par = Functional(lambda rngs: PAR(begun.config, rngs=rngs))
    ours = flatten(beginning.begin(begun, par, begun.episodes())[0]().params)
    assert "parameters, come from the checkpoint; new are action_head, action_tokenizer" in capsys.readouterr().out
    theirs = flatten(pretrained.load(nova, "transformer"))
    shared = [name for name in theirs if name in ours]
    assert len(shared) > 50
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert runs.is_trained(begun.workdir / "vae") and begun.config.vae == pretrained.read_config(nova).vae
    assert np.isfinite(language.read(begun.workdir, get_task("pushcube").instruction)).all()


@pytest.mark.slow
def test_training_begins_with_nova_and_the_policy_acts(run, nova, monkeypatch):
    stages.encode(beginning.adopt(run))
    monkeypatch.setattr(beginning, "embed_prompts", refuse)  # all that is done ahead
    monkeypatch.setattr(stages, "make_encode", lambda *_: refuse)
    stages.train_policy(beginning.adopt(run))
    config, meta, params = load_params(run.workdir)
    assert config.vae == pretrained.read_config(nova).vae and meta["init"] == str(nova)
    ours, theirs = flatten(params), flatten(pretrained.load(nova, "transformer"))
    shared = [name for name in theirs if name in ours]
    assert len(shared) > 50
    for name in shared:  # two tiny steps away
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    instruction = get_task("pushcube").instruction
    kept = language.read(run.workdir, instruction)
    position = np.asarray(theirs["text_embed/position"])
    wanted = language.embed_prompts(nova, jax.numpy.asarray(position), [instruction])[0]
    np.testing.assert_array_equal(kept, wanted)

    policy = Policy.load(run.workdir)
    carry = policy.init(jax.random.key(0), instruction)
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    _, actions, info = policy.act(carry, picture, predict_frame=True)
    assert actions.shape == (8, 8) and np.isfinite(actions).all() and info.predicted.shape == (*SIZE, 3)
    with pytest.raises(UserError, match="was trained to"):
        policy.init(jax.random.key(0), "do something else")


def test_pictures_of_another_size_are_refused(run):
    wide = dataclasses.replace(run.config, picture=PictureConfig(size=(32, 96), crop=(32, 96)))
    with pytest.raises(UserError, match="sees pictures of 32 x 64 pixels"):
        beginning.adopt(dataclasses.replace(run, config=wide))


def test_a_missing_instruction_is_told(tmp_path):
    with pytest.raises(UserError, match="train again with --init"):
        language.read(tmp_path, "push")
    (tmp_path / language.FILE).write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged"):
        language.read(tmp_path, "push")
