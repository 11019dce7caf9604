import numpy as np
import pytest

from par_jax.errors import UserError
from par_jax.sim.simulator import Simulator
from par_jax.tasks import CAMERAS, TASKS, get_cameras, get_robot

ALL = ("render", "base", "hand")


def parts(simulator, seed):
    """The cameras' pictures after a reset, by name, int [H, W, 3]."""
    simulator.reset([seed])
    picture = simulator.picture()
    assert picture.shape == (1, 64, 96 * len(simulator.cameras), 3) and picture.is_contiguous()
    assert str(picture.dtype) == "torch.uint8"
    return dict(
        zip(simulator.cameras, np.split(picture[0].numpy().astype(int), len(simulator.cameras), 1), strict=True)
    )


def count(picture, colour):
    """Pixels in which one of red, green, blue is well above the two others; for red, more than the wooden table's."""
    here = ["red", "green", "blue"].index(colour)
    margin = {"red": 110, "green": 60, "blue": 40}[colour]
    return int((picture[..., here : here + 1] > np.delete(picture, here, -1) + margin).all(-1).sum())


def test_the_default_picture_is_maniskills_own(simulators):
    simulator = simulators("pickcube")
    simulator.reset([2])
    np.testing.assert_array_equal(simulator.picture().numpy(), simulator.env.render_rgb_array().numpy())
    assert simulator.env.robot_uids == "panda"


@pytest.mark.parametrize("task", TASKS)
def test_three_cameras_stitched_from_left_to_right(simulators, task, capfd):
    """At seed 4 the cube lies under the gripper, in sight of all three."""
    simulator = simulators(task, cameras=ALL)
    seen = parts(simulator, 4)
    np.testing.assert_array_equal(seen["render"], simulator.env.render_rgb_array()[0].numpy())
    colour = "blue" if task == "pushcube" else "red"
    assert all(count(picture, colour) >= 4 for picture in seen.values())
    # The wrist camera is closest, and each camera has a picture of its own.
    assert count(seen["hand"], colour) > 2 * count(seen["render"], colour)
    assert len({picture.tobytes() for picture in seen.values()}) == 3
    again = parts(simulator, 4)
    assert all(np.array_equal(seen[name], again[name]) for name in ALL)
    assert "supported robots" not in "".join(capfd.readouterr())


def test_every_camera_shows_the_goal_of_pickcube(simulators):
    """At seed 4 the arm hides it neither from render nor from base, at seed 12 it hangs before the wrist camera."""
    simulator = simulators("pickcube", cameras=ALL)
    seen = parts(simulator, 4)
    assert count(seen["render"], "green") >= 3 and count(seen["base"], "green") >= 3
    assert count(parts(simulator, 12)["hand"], "green") >= 20


def test_the_wrist_camera_moves_with_the_wrist(simulators):
    simulator = simulators("pushcube", cameras=ALL)
    before = parts(simulator, 4)
    target = np.concatenate([simulator.qpos()[:, :7].numpy(), [[1.0]]], 1).astype(np.float32)
    target[0, 6] += 0.4
    for _ in range(6):
        simulator.step(target)
    after = dict(zip(ALL, np.split(simulator.picture()[0].numpy().astype(int), 3, 1), strict=True))
    moved = {name: (np.abs(after[name] - before[name]).max(-1) > 20).mean() for name in ALL}
    assert moved["hand"] > 0.2 > 0.1 > moved["base"]


@pytest.mark.parametrize("mode", ["pd_joint_pos", "pd_ee_delta_pose"])
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_works_with_the_arm_that_carries_the_wrist_camera(task, mode):
    from par_jax.sim.recorder import Recorder

    recorder = Recorder(task, mode, (16, 16), cameras=("hand",))
    try:
        assert recorder.simulator.env.robot_uids == "panda_wristcam"
        assert sum(recorder.episode(seed, pictures=False) is not None for seed in range(3)) == 3
    finally:
        recorder.close()


def test_names_of_cameras():
    assert get_cameras("render") == ("render",)
    assert get_cameras("hand, render") == ("hand", "render")
    assert set(ALL) == set(CAMERAS)
    for text, says in {
        "": "unknown camera '': name one or more of render, base, hand",
        "render,": "unknown camera ''",
        "render,wrist": "unknown camera 'wrist'",
        "hand,hand": "camera hand is named twice",
    }.items():
        with pytest.raises(UserError, match=says):
            get_cameras(text)
    with pytest.raises(UserError, match="unknown camera 'eye'"):
        Simulator("pushcube", cameras=("render", "eye"))


def test_the_arm_is_the_one_that_carries_the_cameras():
    assert get_robot("pushcube", ("render", "base")) == "panda"
    assert get_robot("pushcube", ("render", "hand")) == "panda_wristcam"
    assert get_robot("stackcube", ("render",)) == "panda_wristcam"
