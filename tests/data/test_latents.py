import dataclasses
import errno

import numpy as np
import pytest

from par_jax.data import latents
from par_jax.data.episodes import Episodes
from par_jax.data.latents import digest, encode_all, encode_parts, shifts
from par_jax.data.mixture import Mixture
from par_jax.data.pictures import crop, picture_counts
from par_jax.errors import UserError
from tests.demos import SMALL, make_demos


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return Episodes(make_demos(tmp_path_factory.mktemp("demos") / "data"))


class Encoder:
    """Mean colours of 16 x 16 patches, counting its calls; `fail_at` is the call that raises `error`."""

    def __init__(self, fail_at=None, error=None):
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def __call__(self, pictures):
        self.calls += 1
        assert pictures.shape == (latents.ROWS, 32, 32, 3)
        if self.calls == self.fail_at:
            raise self.error
        return pictures.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4))


def encoded(folder, episodes, encoder, vae="a", seed=0):
    shift = shifts(episodes, np.arange(4), SMALL.picture, seed)
    return encode_all(folder, episodes, encoder, vae, SMALL.picture, shift, (2, 2, 3))


def test_latents_are_those_of_each_episode_s_crop(tmp_path, episodes):
    made = encoded(tmp_path, episodes, Encoder())
    shift = shifts(episodes, np.arange(4), SMALL.picture, 0)
    assert isinstance(made, np.memmap) and made.dtype == np.float16
    wanted = [
        crop(episodes.pictures(i), SMALL.picture, tuple(shift[i])).reshape(-1, 2, 16, 2, 16, 3).mean((2, 4))
        for i in range(len(episodes))
    ]
    np.testing.assert_array_equal(made, np.concatenate(wanted).astype(np.float16))


def test_a_folder_that_joins_leaves_the_others_latents(tmp_path, episodes):
    """Each episode of a mixture has its own latents, and only those of the folder that is new are made."""
    calls, still = [], np.zeros((99, 2), int)

    def encode_as(mixture):
        encoder = Encoder()
        parts = encode_parts(
            tmp_path / "latents", mixture, encoder, "a", SMALL.picture, still[: len(mixture)], (2, 2, 3)
        )
        calls.append(encoder.calls)
        return parts

    other = Episodes(make_demos(tmp_path / "other", count=9, task="stackcube"))
    encode_as(Mixture([episodes]))
    both = Mixture([episodes, other])
    made = encode_as(both)
    assert calls == [sum(-(-picture_counts(folder) // latents.ROWS)) for folder in (episodes, other)]
    for index, latents_of in enumerate(made):
        pictures = crop(both.pictures(index), SMALL.picture)
        wanted = pictures.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4)).astype(np.float16)
        np.testing.assert_array_equal(latents_of, wanted)
    encode_as(both)
    assert calls[2] == 0


def test_latents_of_other_cameras_are_others(tmp_path):
    episodes = Episodes(make_demos(tmp_path / "data", cameras=("render", "hand")))
    calls = []

    def encode(pictures):
        calls.append(pictures)
        return np.zeros((latents.ROWS, 2, 2, 3))

    shift = np.zeros((len(episodes), 2), int)
    for cameras in (("render", "hand"), ("hand", "render"), ("render", "hand")):
        picture = dataclasses.replace(SMALL.picture, cameras=cameras)
        encode_all(tmp_path / "latents", episodes, encode, "a", picture, shift, (2, 2, 3))
    assert len(list((tmp_path / "latents").glob("*.npy"))) == 2
    assert {pictures.shape for pictures in calls} == {(latents.ROWS, 32, 64, 3)}


def test_shifts_move_training_episodes_only(episodes):
    shift = shifts(episodes, np.arange(4), SMALL.picture, 0)
    assert np.all(shift[4:] == 0) and np.any(shift[:4] != 0) and np.abs(shift).max() <= SMALL.picture.shift
    assert not np.array_equal(shift, shifts(episodes, np.arange(4), SMALL.picture, 1))


def test_made_once_for_the_same_vae_data_and_crops(tmp_path, episodes):
    encoded(tmp_path, episodes, Encoder())
    again = Encoder()
    encoded(tmp_path, episodes, again)
    assert again.calls == 0
    encoded(tmp_path, episodes, again, vae="b")
    encoded(tmp_path, episodes, again, seed=1)
    assert len(list(tmp_path.glob("*.npy"))) == 3


@pytest.mark.parametrize("cut", [0, 7])
def test_goes_on_where_it_was_killed(tmp_path, episodes, cut):
    whole = Encoder()
    wanted = encoded(tmp_path / "whole", episodes, whole)
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path / "killed", episodes, Encoder(fail_at=6, error=KeyboardInterrupt()))
    (part,) = (tmp_path / "killed").glob("*.part")
    with part.open("ab") as file:
        file.write(b"x" * cut)  # a kill in the middle of a write
    rest = Encoder()
    np.testing.assert_array_equal(encoded(tmp_path / "killed", episodes, rest), wanted)
    assert rest.calls < whole.calls
    assert not list((tmp_path / "killed").glob("*.part"))


def test_a_full_disk_is_a_sentence(tmp_path, episodes):
    encoder = Encoder(fail_at=2, error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match="is full"):
        encoded(tmp_path, episodes, encoder)


def test_digest_sees_values_names_and_shapes():
    trees = [{"a": np.zeros((2, 3))}, {"b": np.zeros((2, 3))}, {"a": np.zeros((3, 2))}, {"a": np.ones((2, 3))}]
    assert len({digest(tree) for tree in trees}) == 4
    assert digest({"a": np.zeros((2, 3))}) == digest(trees[0])
