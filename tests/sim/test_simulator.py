import numpy as np
import pytest

from par_jax.errors import UserError
from par_jax.sim.expert import EXPERTS
from par_jax.sim.hand import make_hand
from par_jax.sim.simulator import Simulator, resolve_device
from par_jax.tasks import TASKS


def push(simulator, seed, steps):
    """Joint positions of an episode that ends with the cube being pushed, [steps, 9]."""
    simulator.reset([seed])
    expert, hand, trace = EXPERTS[simulator.task](simulator.env), make_hand(simulator), []
    for _ in range(steps):
        simulator.step(hand(expert()))
        trace.append(simulator.qpos()[0].numpy().copy())
    return np.stack(trace)


def test_an_episode_depends_on_its_seed_alone(simulators):
    """Without rebuilding the scene, PhysX lets earlier pushes shift later ones by centimetres."""
    simulator = simulators("pushcube")
    traces = [push(simulator, seed, 24) for seed in (5, 6, 7, 6, 5)]
    np.testing.assert_array_equal(traces[0], traces[4])
    np.testing.assert_array_equal(traces[1], traces[3])
    assert np.abs(traces[0] - traces[2]).max() > 0.01


@pytest.mark.parametrize("task", TASKS)
def test_pictures(simulators, task):
    simulator = simulators(task)
    simulator.reset([3])
    first = simulator.picture()
    assert first.shape == (1, 64, 96, 3)
    assert str(first.dtype) == "torch.uint8"
    simulator.reset([4])
    second = simulator.picture()
    assert not np.array_equal(first.numpy(), second.numpy())
    simulator.reset([3])
    np.testing.assert_array_equal(first.numpy(), simulator.picture().numpy())


def test_the_goal_of_pickcube_is_in_the_picture(simulators):
    simulator = simulators("pickcube")
    simulator.reset([0])
    red, green, blue = np.moveaxis(simulator.picture()[0].numpy().astype(int), -1, 0)
    assert ((green > red + 60) & (green > blue + 60)).sum() >= 3


def test_action_dimensions(simulators):
    assert simulators("pushcube").action_dim == 8
    assert simulators("pushcube", "pd_ee_delta_pose").action_dim == 7


def test_reward_grows_with_the_push(simulators):
    simulator = simulators("pushcube")
    simulator.reset([1])
    expert, hand = EXPERTS["pushcube"](simulator.env), make_hand(simulator)
    rewards = [float(simulator.step(hand(expert()))[0][0]) for _ in range(30)]
    assert 0 <= rewards[0] < rewards[-1] <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "flycube"}, "unknown task or scene 'flycube'.*pushcube"),
        ({"control_mode": "telepathy"}, "unknown control mode 'telepathy'.*pd_joint_pos"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"num_envs": 2}, "GPU only"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(UserError, match=says):
        Simulator(**{"task": "pushcube", **arguments})


@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(name, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA GPU here.*--device=cpu"):
        resolve_device(name)


def test_wrong_number_of_seeds(simulators):
    with pytest.raises(ValueError, match="2 seeds for 1"):
        simulators("pushcube").reset([0, 1])
