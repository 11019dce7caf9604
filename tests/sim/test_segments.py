import numpy as np
import pytest

from par_jax.sim.segments import segments
from par_jax.sim.workers import EnvPool
from par_jax.tasks import SEGMENTS, TASKS

ALL = ("render", "base", "hand")


@pytest.mark.parametrize("task", TASKS)
def test_arm_cube_and_goal_where_their_colours_are(simulators, task):
    """At seed 4 all three cameras see the cube, and none of the arm hides the goal from the first two."""
    simulator = simulators(task, cameras=ALL)
    simulator.reset([4])
    picture = simulator.picture()[0].numpy().astype(int)
    labels = segments(simulator)
    assert labels.shape == (1, 64, 96 * 3) and str(labels.dtype) == "torch.uint8"
    labels = labels[0].numpy()
    colours = {
        "pushcube": {"cube": "blue", "goal": "red"},
        "pickcube": {"cube": "red", "goal": "green"},
        "stackcube": {"cube": "red", "goal": "green"},
    }[task]
    for part, (seen, shown) in enumerate(zip(np.split(labels, 3, 1), np.split(picture, 3, 1), strict=True)):
        for number, name in enumerate(SEGMENTS, 1):
            where = shown[seen == number]
            if name == "arm":
                assert 0.01 < (seen == number).mean() < 0.6
            elif part < 2 or name == "cube":
                assert len(where) >= 4
                here = ["red", "green", "blue"].index(colours[name])
                mean = where.mean(0)
                assert mean[here] > 1.2 * np.delete(mean, here).max(), f"{name}: {mean}"
    assert 0.2 < (labels == 0).mean() < 0.97


def test_segments_follow_the_episode(simulators):
    """A reset builds the scene anew, and its things may have other numbers."""
    simulator = simulators("pushcube")
    found = []
    for seed in (5, 6, 5):
        simulator.reset([seed])
        simulator.picture()
        found.append(segments(simulator)[0].numpy().copy())
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])
    assert all(set(np.unique(labels)) == {0, 1, 2, 3} for labels in found)


def test_a_worker_tells_them(simulators):
    simulator = simulators("pushcube")
    simulator.reset([5])
    simulator.picture()
    with EnvPool(1, task="pushcube", picture_size=(64, 96)) as pool:
        pool.reset(0, 5)
        np.testing.assert_array_equal(pool.segments(0), segments(simulator)[0].numpy())
