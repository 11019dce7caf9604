import numpy as np
import pytest

from par_jax import corrections
from par_jax.errors import UserError
from par_jax.release import SHIPPED
from par_jax.sim.advice import Adviser
from par_jax.sim.recorder import Recorder

PUSH = str(SHIPPED / "pushcube")
FITTING = {
    "task": "pushcube",
    "control_mode": "pd_joint_pos",
    "size": (128, 128),
    "cameras": ("render",),
    "every": 8,
}


def test_who_drives_depends_on_the_seed_and_comes_to_its_share():
    np.testing.assert_array_equal(corrections.driven(3, 12, 0.25), corrections.driven(3, 12, 0.25))
    drawn = np.array([corrections.driven(seed, 12, 0.25) for seed in range(2000)])
    assert drawn[:, 0].mean() == pytest.approx(corrections.BEGINS, abs=0.03)
    # Where the two chances balance.
    late = corrections.GIVES_BACK / (corrections.GIVES_BACK + 0.25)
    assert drawn[:, -1].mean() == pytest.approx(late, abs=0.03)
    assert drawn[:, 1][drawn[:, 0]].mean() == pytest.approx(0.75, abs=0.03)
    alone = np.array([corrections.driven(seed, 12, 0.0) for seed in range(200)])
    assert (alone[:, 1:] >= alone[:, :-1]).all() and alone[:, -1].all()  # once it drives, to the end


def test_a_policy_that_fits_is_accepted_and_known_again():
    first = corrections.check(PUSH, **FITTING)
    assert first == corrections.check(PUSH, **FITTING) > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "pickcube"}, "was trained on pushcube, not on pickcube"),
        ({"control_mode": "pd_ee_delta_pose"}, "speaks pd_joint_pos .--control_mode=pd_joint_pos"),
        ({"cameras": ("render", "base")}, "looks through render .--cameras=render"),
        ({"size": (64, 128)}, "sees pictures of 128x128 .--picture_size=128x128"),
        ({"every": 4}, "looks, and is taught, every 8 steps .--picture_every=8"),
    ],
)
def test_one_that_does_not_fit_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        corrections.check(PUSH, **(FITTING | change))


def test_no_policy_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no"):
        corrections.check(str(tmp_path / "nothing"), **FITTING)


def test_what_the_policy_does_is_executed_and_the_experts_answers_are_taught():
    """The shipped policy and the expert drive in turn; the episode ends well, and replays."""
    pytest.importorskip("mani_skill")
    recorder = corrections.Corrected(PUSH, 0.25, task="pushcube", picture_every=8, noise=False)
    seed = next(seed for seed in range(100) if list(corrections.driven(seed, 3, 0.25)) == [True, False, True])
    episode = recorder.episode(seed)
    again = recorder.episode(seed)
    recorder.episode(seed + 1)
    for name, array in episode.items():
        np.testing.assert_array_equal(array, again[name])
    assert "taught" not in episode  # all of it is
    other = np.abs(episode["action"] - episode["executed"]).max(1) > 0
    assert other[:8].all() and not other[8:16].any() and other[16:24].all()
    # The plan that is taught leads where it would have led: as the first chunk of the expert's own demonstration.
    alone = Recorder("pushcube", noise=False).episode(seed, pictures=False)
    np.testing.assert_allclose(episode["action"][:8], alone["action"][:8], atol=1e-4)
    simulator = recorder.simulator
    simulator.reset([seed])
    success = [bool(simulator.step(step[None])[1][0]) for step in episode["executed"]]
    np.testing.assert_array_equal(simulator.qpos()[0].numpy(), episode["qpos"][-1])
    assert any(success)
    recorder.close()


def test_what_the_adviser_plans_is_what_the_expert_then_does():
    """From any state of an episode, a grasp under way or a cube in the hand; the episode's own simulator stays."""
    pytest.importorskip("mani_skill")
    recorder, adviser = Recorder("pickcube", noise=False), Adviser("pickcube", "pd_joint_pos", ("render",))
    simulator = recorder.simulator
    simulator.reset([3])
    recorder.begin(3)
    adviser.reset(3)
    held = []
    for _ in range(5):
        move = recorder.driver()
        before = simulator.env.get_state().numpy().copy()
        plan = adviser.plan(simulator, recorder.driver, move, 8)
        np.testing.assert_array_equal(simulator.env.get_state().numpy(), before)
        done = []
        for place in range(8):
            move = recorder.driver() if place else move
            done.append(recorder.hand(move)[0])
            simulator.step(done[-1][None])
        np.testing.assert_allclose(plan, np.stack(done), atol=1e-3)
        held.append(bool(simulator.env.agent.is_grasping(simulator.env.cube)[0]))
    assert held[-1] and not held[0]
    adviser.close()
    recorder.close()
