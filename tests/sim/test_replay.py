import json
import shutil
import warnings
from io import BytesIO

import h5py
import numpy as np
import pytest
from PIL import Image

from par_jax.data.episodes import Episodes
from par_jax.errors import UserError
from par_jax.sim.collect import Settings, collect
from par_jax.sim.expert import EXPERTS
from par_jax.sim.hand import make_hand
from par_jax.sim.replay import Replayer, read_index


@pytest.fixture(scope="module")
def recorded(simulators, tmp_path_factory):
    """ManiSkill's own recording of one success and one failure, and the success's pictures [T+1, H, W, 3]."""
    from mani_skill.utils.wrappers.record import RecordEpisode

    folder = tmp_path_factory.mktemp("recorded")
    simulator = simulators("pickcube")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = RecordEpisode(
            simulator._wrapped, str(folder), trajectory_name="trajectory", save_video=False, clean_on_close=False
        )
    pictures = []
    for seed, steps in [(4, 80), (5, 3)]:
        wrapped.reset(seed=seed)
        expert, hand = EXPERTS["pickcube"](simulator.env), make_hand(simulator)
        if seed == 4:
            pictures.append(simulator.picture()[0].numpy().copy())
        for _ in range(steps):
            info = wrapped.step(hand(expert()))[-1]
            if seed == 4:
                pictures.append(simulator.picture()[0].numpy().copy())
            if info["success"][0]:
                break
    wrapped.flush_trajectory()
    wrapped._h5_file.close()
    return folder / "trajectory.h5", np.stack(pictures)


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy to damage."""
    path, _ = recorded
    for file in (path, path.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / path.name


def test_only_the_success_is_listed(recorded):
    (episode,) = read_index(recorded[0], "pickcube", "pd_joint_pos")
    assert episode["episode_id"] == 0


def test_replayed_states_give_the_recorded_pictures(recorded, simulators, monkeypatch):
    path, pictures = recorded
    monkeypatch.setattr("par_jax.sim.filming.Simulator", lambda *args, **kwargs: simulators("pickcube"))
    episode = Replayer(str(path), "pickcube", "pd_joint_pos", (64, 96)).episode(0)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(episode["action"], file["traj_0/actions"])
    assert episode["seed"].tolist() == [4]
    assert len(episode["qpos"]) == len(episode["picture_ends"]) == len(pictures) == len(episode["action"]) + 1
    starts = [0, *episode["picture_ends"][:-1]]
    data = episode["picture_bytes"].tobytes()
    decoded = np.stack(
        [np.asarray(Image.open(BytesIO(data[a:b]))) for a, b in zip(starts, episode["picture_ends"], strict=True)]
    )
    differing = (np.abs(decoded.astype(int) - pictures).max(-1) > 8).mean()
    assert differing < 1e-3


def test_the_whole_way_to_a_data_folder(recorded, tmp_path):
    settings = Settings("pickcube", picture_size=(64, 96), trajectories=str(recorded[0]))
    said = collect(settings, tmp_path / "out", episodes=1000, workers=1)
    assert "1 demonstrations of pickcube from" in said
    data = Episodes(tmp_path / "out", task="pickcube", picture_size=(64, 96))
    assert len(data) == 1
    assert data.meta["source"] == str(recorded[0])
    np.testing.assert_array_equal(data.numbers(0)["seed"], [4])


def test_a_recording_can_be_seen_through_other_cameras(recorded, simulators, monkeypatch):
    """The base camera beside the render camera: it hides neither the cube nor the goal."""
    simulator = simulators("pickcube", cameras=("base", "render"))
    monkeypatch.setattr("par_jax.sim.filming.Simulator", lambda *args, **kwargs: simulator)
    path, pictures = recorded
    episode = Replayer(str(path), "pickcube", "pd_joint_pos", (64, 96), cameras=("base", "render")).episode(0)
    first = Image.open(BytesIO(episode["picture_bytes"][: episode["picture_ends"][0]].tobytes()))
    base, render = np.split(np.asarray(first).astype(int), 2, 1)
    assert (np.abs(render - pictures[0]).max(-1) > 8).mean() < 1e-3
    assert (np.abs(base - pictures[0]).max(-1) > 8).mean() > 0.5


def test_another_arm_s_recording_is_refused(recorded, tmp_path):
    """Its wrist begins a quarter turn away from where rollouts with these cameras would begin."""
    settings = Settings("pickcube", trajectories=str(recorded[0]), cameras=("render", "hand"))
    says = (
        "recorded with the robot panda, but --cameras=render,hand means panda_wristcam: use --cameras=render,base, or"
    )
    with pytest.raises(UserError, match=says):
        collect(settings, tmp_path / "out", 1, 1)
    assert not (tmp_path / "out").exists()


def edit(path, change):
    sidecar = path.with_suffix(".json")
    index = json.loads(sidecar.read_text())
    change(index)
    sidecar.write_text(json.dumps(index))


def no_states(path):
    with h5py.File(path, "a") as file:
        del file["traj_0/env_states"]


def no_success(path):
    with h5py.File(path, "a") as file:
        file["traj_0/success"][:] = False


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def other_mode(path):
    edit(path, lambda index: [episode.update(control_mode="pd_ee_pose") for episode in index["episodes"]])


@pytest.mark.parametrize(
    ("damage", "task", "says"),
    [
        (lambda path: path.unlink(), "pickcube", "no trajectory file"),
        (lambda path: path.with_suffix(".json").unlink(), "pickcube", "has no trajectory.json beside it"),
        (lambda path: path.with_suffix(".json").write_text("{"), "pickcube", "is damaged"),
        (lambda path: None, "pushcube", "is of PickCube-v1, but --task=pushcube means PushCube-v1"),
        (other_mode, "pickcube", "control mode pd_ee_pose"),
        (no_states, "pickcube", "no env_states"),
        (no_success, "pickcube", "no successful trajectory"),
        (cut, "pickcube", "damaged or cut off"),
    ],
)
def test_bad_files(copy, damage, task, says):
    damage(copy)
    with pytest.raises(UserError, match=says):
        read_index(copy, task, "pd_joint_pos")
