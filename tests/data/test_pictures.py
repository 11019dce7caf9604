import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.config import PictureConfig
from par_jax.data.episodes import Episodes
from par_jax.data.pictures import crop, picture_batches, sample_pictures, split_episodes, to_unit
from tests.demos import SMALL, TWO_CAMERAS, make_demos


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return Episodes(make_demos(tmp_path_factory.mktemp("demos") / "data"))


def test_crop_is_centred_and_shifts_down_and_right():
    picture = np.arange(10 * 14).reshape(10, 14, 1)
    config = PictureConfig(size=(10, 14), crop=(6, 8), shift=2)
    np.testing.assert_array_equal(crop(picture, config), picture[2:8, 3:11])
    np.testing.assert_array_equal(crop(picture, config, (2, -1)), picture[4:10, 2:10])
    np.testing.assert_array_equal(crop(picture[None], config, (9, -9))[0], picture[4:10, 0:8])
    low = dataclasses.replace(config, offset=(1, 2))
    np.testing.assert_array_equal(crop(picture, low, (-1, 0)), picture[2:8, 5:13])


@pytest.mark.parametrize("cameras", [1, 2, 3])
@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (9, 9)])
def test_each_camera_is_cropped_alike_and_stitched_from_left_to_right(cameras, shift):
    config = PictureConfig(cameras=("render", "hand", "base")[:cameras], size=(10, 14), crop=(6, 8), offset=(1, 0))
    alone = dataclasses.replace(config, cameras=("render",))
    parts = np.random.default_rng(0).integers(0, 256, (cameras, 2, 5, 10, 14, 3), np.uint8)
    wanted = np.concatenate([crop(part, alone, shift) for part in parts], axis=-2)
    seen = crop(np.concatenate(list(parts), axis=-2), config, shift)
    assert seen.shape == (2, 5, *config.stitched, 3)
    np.testing.assert_array_equal(seen, wanted)
    np.testing.assert_array_equal(crop(jnp.asarray(np.concatenate(list(parts), axis=-2)), config, shift), wanted)


def test_the_crop_of_one_camera_is_a_view():
    picture = np.zeros((4, 10, 14, 3), np.uint8)
    assert np.shares_memory(crop(picture, PictureConfig(size=(10, 14), crop=(6, 8))), picture)


def test_batches_of_several_cameras(tmp_path):
    episodes = Episodes(make_demos(tmp_path / "data", cameras=("render", "hand")))
    batch = next(picture_batches(episodes, np.arange(5), TWO_CAMERAS.picture, 8, seed=1))
    assert batch.shape == (8, 32, 64, 3)
    # Each half shows its own camera's square.
    assert np.all(batch[:, :, :32].max((1, 2)) == (250, 90, 90))
    assert np.all(batch[:, :, 32:].max((1, 2)) == (90, 90, 240))
    assert sample_pictures(episodes, np.arange(5), TWO_CAMERAS.picture, 3).shape == (3, 32, 64, 3)


def test_unit_range():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    assert to_unit(np.array([7], np.uint8)).dtype == np.float32


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (19, 1), (200, 10), (5000, 50)])
def test_split_holds_out_the_last(count, held_out):
    train, validation = split_episodes(count)
    assert [*train, *validation] == list(range(count))
    assert len(validation) == held_out


def test_batches_are_random_crops_that_can_be_taken_up_again(episodes):
    make = lambda: picture_batches(episodes, np.arange(5), SMALL.picture, 8, seed=1)  # noqa: E731
    first, second = make(), make()
    batches = [next(first) for _ in range(4)]
    assert batches[0].shape == (8, 32, 32, 3) and batches[0].dtype == np.uint8
    for batch in batches[:2]:
        np.testing.assert_array_equal(next(second), batch)
    third = make()
    third.set_state(second.get_state())
    np.testing.assert_array_equal(next(third), batches[2])


def test_processes_load_their_own_rows_of_the_same_batches(episodes):
    parts = (slice(None), slice(0, 3), slice(3, 8))
    whole, first, last = (picture_batches(episodes, np.arange(5), SMALL.picture, 8, 1, rows) for rows in parts)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([next(first), next(last)]), next(whole))


def test_sample_is_unshifted_and_spread(episodes):
    pictures = sample_pictures(episodes, np.array([2, 4]), SMALL.picture, 6)
    wanted = crop(np.concatenate([episodes.pictures(i) for i in (2, 4)]), SMALL.picture)
    assert pictures.shape == (6, 32, 32, 3)
    assert all(any(np.array_equal(picture, other) for other in wanted) for picture in pictures)
