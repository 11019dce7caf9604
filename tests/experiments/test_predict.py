"""Frames predicted on demonstrations: by policies that know what comes, and by an untrained one through the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import predict
from par_jax import quality
from par_jax.config import to_dict
from par_jax.data.episodes import Episodes, read_meta, write_meta
from par_jax.data.mixture import Mixture
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.predictions import action_errors, watch
from par_jax.tasks import get_task
from par_jax.workdir import write_json
from tests.demos import SMALL, make_demos, make_run

_PUSH = get_task("pushcube").instruction


class _Told:
    """Predicts the frames that it is told of, and notes what it is shown."""

    def __init__(self, frames):
        self.config, self.frames, self.shown, self.executed = SMALL, frames, [], []

    def init(self, key, instruction):
        assert instruction == _PUSH
        return 0

    def view(self, picture):
        return picture[4:36, 4:36]

    def act(self, carry, picture, predict_frame=False):
        assert predict_frame and carry == len(self.executed), "each look follows what was done before it"
        self.shown.append(picture)
        return carry, np.zeros((8, 8), np.float32), SimpleNamespace(predicted=self.view(self.frames[carry]))

    def overruled(self, carry, actions):
        self.executed.append(actions)
        return carry + 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demos(tmp_path_factory.mktemp("demos") / "pushcube", count=24)


def test_a_demonstration_is_shown_chunk_by_chunk_with_what_was_done(data):
    episodes = Mixture([Episodes(data)])
    for index in range(4):
        record, pictures = episodes.numbers(index), episodes.pictures(index)
        count = len(record["action"]) // 8
        seer, repeater = _Told(pictures[8::8]), _Told(pictures[::8])
        film = watch(seer, episodes, index, _PUSH)
        np.testing.assert_array_equal(seer.shown, pictures[: 8 * count : 8])
        np.testing.assert_array_equal(np.concatenate(seer.executed), record["action"][: 8 * count])
        predicted, executed, before = film.pairs()
        assert len(predicted) == count
        np.testing.assert_array_equal(predicted, executed)
        np.testing.assert_array_equal(before, pictures[: 8 * count : 8, 4:36, 4:36])
        assert quality.compare(*watch(repeater, episodes, index, _PUSH).pairs())["psnr_gain"] == 0


def test_answers_are_measured_against_what_is_taught_in_halves_of_each_range(data):
    episodes = Mixture([Episodes(data)])
    taught = episodes.numbers(0)["action"]
    count = len(taught) // 8
    film = watch(_Told(episodes.pictures(0)[8::8]), episodes, 0, _PUSH)
    statistics = {"low": [-2.0] * 7 + [1.0], "high": [2.0] * 7 + [1.0]}
    errors = action_errors(film, taught, statistics)
    half = np.array([2.0] * 7 + [0.01])
    np.testing.assert_allclose(errors, np.abs(taught[: 8 * count]).reshape(count, 8, 8) / half, rtol=1e-5)


def test_a_folder_with_few_pictures_is_read_at_the_same_moments():
    class Few:
        def numbers(self, index):
            action = np.arange(19 * 8, dtype=np.float32).reshape(19, 8)
            return {"action": action, "executed": action + 1, "seed": np.array([7], np.int64)}

        def strides(self):
            return np.array([4])

        def pictures(self, index, places):
            assert places == [0, 2, 4], "every 8th control step of one picture in 4"
            return np.stack([np.full((40, 40, 3), place, np.uint8) for place in places])

    policy = _Told(np.zeros((2, 40, 40, 3), np.uint8))
    film = watch(policy, Few(), 0, _PUSH)
    assert film.steps.tolist() == [0, 8, 16] and film.due.tolist() == [8, 16] and film.seed == 7
    np.testing.assert_array_equal(policy.executed[1], np.arange(64, 128).reshape(8, 8) + 1)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    meta = {
        "stage": "policy",
        "tasks": ["pushcube"],
        "instructions": [_PUSH],
        "config": to_dict(SMALL),
        "statistics": {"low": [-1.0] * 8, "high": [1.0] * 8},
        "dataset": read_meta(data),
    }
    make_run(folder, lambda rngs: PAR(SMALL, rngs=rngs), meta)
    make_run(folder / "vae", lambda rngs: VAE(SMALL.vae, rngs=rngs), meta | {"stage": "vae"})
    return folder


@pytest.fixture
def command(run, data, monkeypatch):
    unset = ("out", "episodes", "dtype", "context", "sampler", "action_steps", "frame_steps")

    def call(**changes):
        flags = {"checkpoint": str(run), "data": [str(data)], "strips": 4, "device": "auto"}
        monkeypatch.setattr(predict, "FLAGS", SimpleNamespace(**flags | dict.fromkeys(unset) | changes))
        predict.main()

    return call


def test_held_out_demonstrations_are_measured(command, run, data, tmp_path, capsys):
    command(out=str(tmp_path / "out"), frame_steps=3)
    found = json.loads((tmp_path / "out" / "frames.json").read_text())
    record = Episodes(data).numbers(23)
    assert found["demonstrations"] == 1, "5% of 24"
    assert found["frames"] == len(record["action"]) // 8
    assert (found["frame_steps"], found["of_its_training"]) == (3, True)
    assert found["psnr_gain"] == pytest.approx(found["psnr_predicted"] - found["psnr_repeated"])
    # A head that has learnt nothing answers noise; PushCube's gripper does not move.
    assert 0.05 < found["action_error"] < 20
    said = capsys.readouterr().out
    assert f"mean absolute error {found['action_error']:.4f}" in said
    assert f"repeating the last frame {found['psnr_repeated']:.2f}" in said and "held out of its training" in said
    assert np.asarray(Image.open(tmp_path / "out" / "23.png")).ndim == 3


def test_other_data_than_the_trainings_is_called_so(command, run, tmp_path, capsys):
    other = make_demos(tmp_path / "other", count=2)
    command(data=[str(other)], strips=0, out=str(tmp_path / "out"))
    assert "of other data than its training's" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))
    assert not json.loads((tmp_path / "out" / "frames.json").read_text())["of_its_training"]


def _changed(folder, **changes):
    write_meta(folder, read_meta(folder) | changes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": None}, "say whose frames and on what"),
        ({"data": None}, "say whose frames and on what"),
        ({"checkpoint": "/no/such/run"}, "holds no checkpoint"),
        ({"data": ["/no/such/data"]}, "no data folder at /no/such/data"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"context": 4}, "--context=4: this policy was trained to look back on 2 packages"),
    ],
)
def test_bad_input_is_one_sentence(command, flags, message):
    with pytest.raises(UserError, match=message) as error:
        command(**flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "pickcube"}, "is of pickcube, and the policy was trained on pushcube"),
        ({"control_mode": "pd_ee_delta_pose"}, "control_mode"),
        ({"picture_every": 3}, "a picture every 3 control steps, which does not divide the model's chunk of 8"),
    ],
)
def test_data_that_does_not_fit_is_refused(command, tmp_path, change, message):
    other = make_demos(tmp_path / "other", count=2)
    _changed(other, **change)
    with pytest.raises(UserError, match=message):
        command(data=[str(other)])


def test_a_single_demonstration_has_nothing_held_out(command, tmp_path):
    with pytest.raises(UserError, match="holds a single demonstration"):
        command(data=[str(make_demos(tmp_path / "one", count=1))])


def test_a_policy_that_only_acts_is_refused(command, run, tmp_path):
    meta = json.loads((run / "config.json").read_text())
    meta["config"]["model"]["predict_frames"] = False
    for name in ("checkpoints", "vae"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(run / name)
    write_json(tmp_path / "run" / "config.json", meta)
    with pytest.raises(UserError, match="predicts no frames"):
        command(checkpoint=str(tmp_path / "run"))
