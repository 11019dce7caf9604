import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import looking, recording, sampling
from par_jax.config import to_dict
from par_jax.data.pictures import to_unit
from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.language import instruction_tokens
from par_jax.looking import READINGS, Look, Looker, on_things
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.policy import Policy
from par_jax.video import Film
from tests.demos import SMALL, make_run
from tests.model.conftest import both_conditions

_META = {
    "stage": "policy",
    "tasks": ["pickcube", "pushcube"],
    "instructions": ["Pick the cube.", "Push the cube."],
    "config": to_dict(SMALL),
    "statistics": {"low": [-2.0] * 8, "high": [4.0] * 8},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looking") / "run"
    make_run(folder, lambda rngs: PAR(SMALL, rngs=rngs), _META)
    make_run(folder / "vae", lambda rngs: VAE(SMALL.vae, rngs=rngs), _META | {"stage": "vae"})
    return folder


@pytest.fixture(scope="module")
def film(run, tmp_path_factory):
    """A policy that looks five times at noise; a chunk is one step long here."""
    policy = Policy.load(run)
    pictures = np.random.default_rng(0).integers(0, 256, (6, *SMALL.picture.size, 3), np.uint8)
    film = Film("", [policy.view(picture) for picture in pictures])
    carry = policy.init(jax.random.key(3), _META["instructions"][1])
    for step, picture in enumerate(pictures[:5]):
        carry, actions, _ = policy.act(carry, picture)
        film.look(step, np.asarray(actions), np.full((32, 32), step % 4, np.uint8))
    path = tmp_path_factory.mktemp("film") / "one.npz"
    recording.write(film, path, Trial(0, 0), True)
    return recording.read(path)


def test_the_maps_are_of_the_model_that_acted(run, film):
    """Outputs computed again from the recording are those of the cached steps."""
    looker, policy = Looker(run), Policy.load(run)
    par, vae = Functional(lambda rngs: PAR(SMALL, rngs=rngs)), Functional(lambda rngs: VAE(SMALL.vae, rngs=rngs))
    text = instruction_tokens(SMALL.text, _META["instructions"][1], run)
    cache = sampling.start(par.bind(policy.params["par"]), text[None])
    executed = jnp.zeros((1, *film.actions.shape[1:]))
    outputs = looker.maps(film, "pushcube", 8).z
    assert outputs.shape[0] == 8
    for n in range(5):
        latents = vae.bind(policy.params["vae"]).encode_frames(to_unit(film.at(film.looks[n : n + 1])))
        cache, *z = both_conditions(par.bind(policy.params["par"]), cache, latents, executed)
        wanted = jnp.concatenate(z, axis=1)[0]
        assert np.linalg.norm(outputs[n] - wanted) <= 1e-4 * np.linalg.norm(wanted)
        executed = (film.actions[n : n + 1] - 1.0) / 3.0


def test_a_look_is_cut_to_what_there_was(run, film):
    look = Looker(run)(film, "pushcube")
    assert look.pictures.shape == (5, 32, 32, 3) and look.segments[:, 0, 0].tolist() == [0, 1, 2, 3, 0]
    for reading in READINGS:
        np.testing.assert_allclose(look.tokens[reading].sum(-1), 1, rtol=1e-4)
        maps = look.frames(reading)
        assert maps.shape == (5, 2, 2)
        np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
        ages = look.by_age(look.tokens[reading])
        assert ages.shape == (2 + 2 * SMALL.model.context,)
        np.testing.assert_allclose(ages.sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(look.by_age(look.heads).sum(-1), 1, rtol=1e-4)
    assert np.all(look.by_age(look.heads)[..., 1] == 0), "attention itself stays within the context"


def test_ages_of_tokens():
    """One text token; packages of two frame tokens and one action; a context of two."""
    look = Look({}, np.zeros(0), 1, 2, 1, (1, 2), np.zeros(0), np.zeros(0), 2)
    rows = np.zeros((3, 10))
    rows[2] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert look.by_age(rows[2:]).tolist() == [1, 0, 0, 0, 5, 4], "a single look: nothing before it"
    rows[1, :7] = rows[2, :7]
    assert (2 * look.by_age(rows)).tolist() == [2, 9, 5 + 11, 4 + 7, 11 + 17, 7 + 10]
    look = dataclasses.replace(look, tokens={"it": np.tile(np.arange(10.0), (3, 1))})
    np.testing.assert_allclose(look.frames("it")[2], [[7 / 15, 8 / 15]])


def test_mass_on_things_beside_their_share_of_the_picture():
    segments = np.zeros((1, 4, 8), np.uint8)
    segments[0, :, :2] = 1  # half of the left token
    segments[0, 0, 4:] = 3  # a quarter of the right one
    even = on_things(np.full((1, 1, 2), 0.5), segments)
    assert even == {"arm": (0.25, 0.25), "cube": (0, 0), "goal": (0.125, 0.125), "all three": (0.375, 0.375)}
    left = on_things(np.array([[[1.0, 0.0]]]), segments)
    assert left == {"arm": (0.5, 0.25), "cube": (0, 0), "goal": (0, 0.125), "all three": (0.5, 0.375)}


def test_the_frame_vae_alone(run, film):
    """What has not changed is what was seen; what has is the decoder's."""
    first, second = film.executed[:2]
    again = Looker(run).through_the_vae(np.stack([first, second]), np.stack([first, first]))
    assert again.shape == (2, 32, 32, 3) and again.dtype == np.uint8
    np.testing.assert_array_equal(again[0], first)
    assert not np.array_equal(again[1], first)


def test_a_policy_without_attention_is_refused(tmp_path, run, film):
    config = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, transformer=False, predict_frames=False))
    make_run(tmp_path / "run", lambda rngs: PAR(config, rngs=rngs), _META | {"config": to_dict(config)})
    (tmp_path / "run" / "vae").symlink_to(run / "vae")
    with pytest.raises(UserError, match="no transformer"):
        Looker(tmp_path / "run")(film, "pushcube")
    with pytest.raises(UserError, match="holds no checkpoint"):
        looking.Looker(tmp_path)
