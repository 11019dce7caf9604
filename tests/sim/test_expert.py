import numpy as np
import pytest

from par_jax.sim.expert import EXPERTS, Move, limited
from par_jax.sim.hand import make_hand
from par_jax.sim.recorder import TAIL, Lapses, Noise, Recorder, drawn_side
from par_jax.tasks import TASKS


@pytest.fixture
def recorder(simulators, monkeypatch):
    """Recorders on the shared simulators."""

    def make(task, control_mode="pd_joint_pos", **settings):
        monkeypatch.setattr("par_jax.sim.filming.Simulator", lambda *args, **kwargs: simulators(task, control_mode))
        return Recorder(task, control_mode, **settings)

    return make


def replay(simulator, episode, key="executed"):
    """Success, and joint positions [T+1, 9], of an episode's actions executed open loop."""
    simulator.reset([int(episode["seed"][0])])
    qpos, success = [simulator.qpos()[0].numpy().copy()], False
    for action in episode[key]:
        _, now = simulator.step(action[None])
        success |= bool(now[0])
        qpos.append(simulator.qpos()[0].numpy().copy())
    return success, np.stack(qpos)


@pytest.mark.parametrize("task", TASKS)
def test_recorded_actions_reproduce_the_episode(simulators, recorder, task):
    make = recorder(task)
    for seed in (100, 101):
        episode = make.episode(seed, pictures=False)
        assert episode is not None
        assert episode["action"].shape == episode["executed"].shape == (len(episode["qpos"]) - 1, 8)
        success, qpos = replay(simulators(task), episode)
        assert success
        np.testing.assert_array_equal(qpos, episode["qpos"])


@pytest.mark.parametrize("task", TASKS)
def test_without_noise_the_recorded_action_is_the_executed_one(simulators, recorder, task):
    episode = recorder(task, noise=False).episode(7, pictures=False)
    np.testing.assert_array_equal(episode["action"], episode["executed"])
    assert replay(simulators(task), episode, "action")[0]


@pytest.mark.parametrize("task", TASKS)
def test_end_effector_actions(simulators, recorder, task):
    episode = recorder(task, "pd_ee_delta_pose").episode(3, pictures=False)
    assert episode["action"].shape[1] == 7
    assert np.abs(episode["action"]).max() <= 1
    assert replay(simulators(task, "pd_ee_delta_pose"), episode)[0]


def test_the_tail_is_quiet(recorder):
    """The last chunk is the expert's own: what follows the success is executed as recorded."""
    episode = recorder("pushcube").episode(11, pictures=False)
    np.testing.assert_array_equal(episode["action"][-TAIL:], episode["executed"][-TAIL:])
    assert not np.array_equal(episode["action"], episode["executed"])


def test_after_a_lapse_the_expert_comes_again(simulators, recorder):
    """What is done meanwhile is not taught, and is not the expert's; the episode ends well, and replays."""
    episode = recorder("pickcube", noise=False, lapses=1.0).episode(5, pictures=False)
    taught = episode["taught"]
    lapse = ~taught
    assert 6 <= lapse.sum() <= 40 and taught[-TAIL:].all()
    np.testing.assert_array_equal(episode["action"][taught], episode["executed"][taught])
    assert (np.abs(episode["action"] - episode["executed"])[lapse].max(1) > 0.01).all()
    assert replay(simulators("pickcube"), episode)[0]
    assert "taught" not in recorder("pickcube", lapses=0.0).episode(5, pictures=False)


def test_lapses_depend_on_the_seed_and_come_to_their_share():
    assert Lapses(3, 1.0).steps.keys() == Lapses(3, 1.0).steps.keys() != Lapses(4, 1.0).steps.keys()
    share = np.mean([bool(Lapses(seed, 0.3).steps) for seed in range(1000)])
    assert 0.25 < share < 0.35


def test_noise_depends_on_the_seed_alone():
    move = Move(np.array([0.01, 0.0, -0.02]), 0.1, 1.0)
    runs = [[(noise(move, 0.1)).delta for _ in range(30)] for noise in (Noise(3), Noise(3), Noise(4))]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_noise_does_not_press_on_the_table():
    noise = Noise(0)
    down = Move(np.array([0.03, 0.0, 0.0]), 0.0, 1.0)
    assert min(noise(down, 0.015).delta[2] for _ in range(300)) >= -0.005 - 1e-9


def test_limited_keeps_the_direction():
    np.testing.assert_allclose(limited(np.array([3.0, 4.0, 0.0]), 0.5), [0.3, 0.4, 0.0])
    np.testing.assert_array_equal(limited(np.array([0.001, 0.0, 0.0])), [0.001, 0.0, 0.0])


def test_push_recovers_from_a_slip(simulators):
    """The cube is shoved aside in the middle of the push: the expert lifts, comes again, and succeeds."""
    import torch
    from mani_skill.utils.structs import Pose

    simulator = simulators("pushcube")
    simulator.reset([21])
    expert, hand = EXPERTS["pushcube"](simulator.env), make_hand(simulator)
    heights, shoved = [], False
    for _ in range(TASKS["pushcube"].max_steps):
        cube = simulator.env.obj.pose
        if expert.pushing and not shoved:
            beside = cube.p + torch.tensor([[0.0, 0.05, 0.0]])
            simulator.env.obj.set_pose(Pose.create_from_pq(beside, cube.q))
            shoved = True
        _, success = simulator.step(hand(expert()))
        if shoved:
            heights.append(float(simulator.env.agent.tcp.pose.p[0, 2]))
        if success[0]:
            break
    assert shoved
    assert success[0]
    assert max(heights) > 0.04


def hand_and_cube(simulator, episode):
    """Where both are at each step of an episode, f64 [T, 3] each."""
    env, hand, cube = simulator.env, [], []
    simulator.reset([int(episode["seed"][0])])
    for action in episode["executed"]:
        hand.append(env.agent.tcp.pose.p[0].numpy().astype(float))
        cube.append(env.obj.pose.p[0].numpy().astype(float))
        simulator.step(action[None])
    return np.stack(hand), np.stack(cube)


def test_around_the_cube_on_the_side_that_is_drawn(simulators, recorder):
    """Where the hand comes down in front of the cube: low beside it on one side, and the push succeeds."""
    make, seen = recorder("pushcube", noise=False, around=True), set()
    for seed in (100, 102):
        episode = make.episode(seed, pictures=False)
        assert episode is not None
        hand, cube = hand_and_cube(simulators("pushcube"), episode)
        assert cube[0, 0] < -0.05
        past = int(np.argmax(hand[:, 0] < cube[0, 0] - 0.045))  # the first step behind it
        assert past and np.abs(cube[: past + 1] - cube[0]).max() < 0.001
        beside = (hand - cube)[past, 1]
        assert np.abs(beside) > 0.05 and hand[past, 2] < 0.06 and np.sign(beside) == drawn_side(seed)
        seen.add(drawn_side(seed))
        assert replay(simulators("pushcube"), episode)[0]
    assert seen == {-1, 1}


def test_sides_depend_on_the_seed_and_are_as_likely():
    sides = [drawn_side(seed) for seed in range(1000)]
    assert sides == [drawn_side(seed) for seed in range(1000)] and set(sides) == {-1, 1}
    assert abs(np.mean(sides)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_success_on_many_seeds(simulators, recorder, task):
    """At least 95% of 60 seeds, with noise; and their recorded actions reproduce it."""
    make = recorder(task)
    episodes = [make.episode(seed, pictures=False) for seed in range(5000, 5060)]
    kept = [episode for episode in episodes if episode is not None]
    assert len(kept) >= 57
    assert sum(replay(simulators(task), episode)[0] for episode in kept[:20]) >= 19
