import numpy as np
import pytest

from par_jax import recording
from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.video import Film

_L = 8


def make_film(steps, predicted=True, size=(32, 32)):
    """Executed pictures are as bright as their step, predictions one brighter than the step that they are due at."""
    film = Film("a title", [np.full((*size, 3), t % 256, np.uint8) for t in range(steps + 1)])
    for made in range(0, steps, _L):
        film.look(made, np.full((_L, 2), made, np.float32), np.full(size, made % 4, np.uint8))
        if predicted:
            film.predict(np.full((*size, 3), (made + _L + 1) % 256, np.uint8), made, made + _L)
    return film


def test_what_is_written_is_read(tmp_path):
    recording.write(make_film(21), tmp_path / "videos" / "one.npz", Trial(2, 7), True)
    found = recording.read(tmp_path / "videos" / "one.npz")
    assert (found.seed, found.policy_seed, bool(found.success)) == (7, 2, True)
    # The looks, what was due, and the end; of what lies between only the last steps.
    assert found.steps.tolist() == [0, 8, *range(13, 22)]
    assert found.executed[:, 0, 0, 0].tolist() == found.steps.tolist()
    assert found.looks.tolist() == found.made.tolist() == [0, 8, 16]
    assert found.due.tolist() == [8, 16, 24]
    assert found.actions[:, 0, 0].tolist() == [0, 8, 16]
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["one.npz"]


def test_predictions_are_paired_with_their_moment_if_it_came(tmp_path):
    recording.write(make_film(21), tmp_path / "one.npz", Trial(0, 0), False)
    predicted, executed, before = recording.read(tmp_path / "one.npz").pairs()
    assert predicted[:, 0, 0, 0].tolist() == [9, 17]
    assert executed[:, 0, 0, 0].tolist() == [8, 16]
    assert before[:, 0, 0, 0].tolist() == [0, 8]


def test_a_long_rollout_makes_a_small_file(tmp_path):
    film = make_film(400, size=(96, 96))
    recording.write(film, tmp_path / "one.npz", Trial(0, 0), False)
    found = recording.read(tmp_path / "one.npz")
    assert len(found.steps) == 58
    assert (tmp_path / "one.npz").stat().st_size < 200_000


def test_without_predictions(tmp_path):
    recording.write(make_film(9, predicted=False), tmp_path / "one.npz", Trial(0, 0), False)
    found = recording.read(tmp_path / "one.npz")
    assert found.predicted.shape == (0, 32, 32, 3) and found.looks.tolist() == [0, 8]
    assert all(len(part) == 0 for part in found.pairs())


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    path = tmp_path / "one.npz"
    recording.write(make_film(9), path, Trial(0, 0), False)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged: make the rollouts again"):
        recording.read(path)
