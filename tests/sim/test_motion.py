import numpy as np
import pytest

from par_jax.sim.motion import STEPS, Motions
from par_jax.tasks import SCENES


@pytest.fixture
def motions(simulators, monkeypatch):
    """Videos of the shared simulator."""
    monkeypatch.setattr("par_jax.sim.filming.Simulator", lambda *args, **kwargs: simulators("pushcube"))
    return Motions("pushcube")


def test_a_video_is_its_seed_s(motions):
    first, other, again = (motions.episode(seed, pictures=False) for seed in (3, 4, 3))
    assert first["action"].shape == (STEPS, 8) and first["qpos"].shape == (STEPS + 1, 9)
    assert set(first) == set(again)
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert not np.allclose(other["qpos"], first["qpos"], atol=0.01)


@pytest.mark.parametrize("every", [3, 4, STEPS + 1])
def test_every_few_steps_and_the_end_are_filmed(motions, monkeypatch, every):
    monkeypatch.setattr("par_jax.sim.filming.png", lambda picture: b"%d" % len(calls))
    calls, step = [], motions.simulator.step
    monkeypatch.setattr(motions.simulator, "step", lambda action: (calls.append(action), step(action))[1])
    motions.picture_every = every
    made = motions.episode(3)
    ends = made["picture_ends"]
    files = [made["picture_bytes"][a:b].tobytes() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert [int(file) for file in files] == [*range(0, STEPS, every), STEPS]
    assert len(made["qpos"]) == STEPS + 1


def test_the_arm_goes_about_and_nothing_is_refused(motions):
    made = [motions.episode(seed, pictures=False)["qpos"] for seed in range(4)]
    assert all(np.ptp(qpos[:, :7], axis=0).max() > 0.15 for qpos in made)
    assert max(np.ptp(qpos[:, 7]) for qpos in made) > 0.02, "the fingers move too"


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_can_be_filmed(scene):
    motions = Motions(scene)
    episode = motions.episode(0)
    motions.close()
    assert len(episode["picture_ends"]) == STEPS + 1 and np.ptp(episode["qpos"]) > 0.1
