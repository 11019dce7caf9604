import numpy as np
import pytest

from par_jax import corrections
from par_jax.errors import UserError
from par_jax.release import SHIPPED

PUSH = str(SHIPPED / "pushcube")
FITTING = {
    "task": "pushcube",
    "control_mode": "pd_joint_pos",
    "size": (128, 128),
    "cameras": ("render",),
    "every": 8,
}


def test_who_drives_depends_on_the_seed_and_comes_to_its_share():
    np.testing.assert_array_equal(corrections.driven(3, 12), corrections.driven(3, 12))
    drawn = np.array([corrections.driven(seed, 12) for seed in range(2000)])
    assert drawn[:, 0].mean() == pytest.approx(corrections.BEGINS, abs=0.03)
    # Where the two chances balance.
    late = corrections.GIVES_BACK / (corrections.GIVES_BACK + corrections.TAKES_OVER)
    assert drawn[:, -1].mean() == pytest.approx(late, abs=0.03)
    assert drawn[:, 1][drawn[:, 0]].mean() == pytest.approx(1 - corrections.TAKES_OVER, abs=0.03)


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
        ({"every": 3}, "looks every 8 steps .--picture_every must divide that"),
    ],
)
def test_one_that_does_not_fit_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        corrections.check(PUSH, **(FITTING | change))


def test_no_policy_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no"):
        corrections.check(str(tmp_path / "nothing"), **FITTING)


def test_what_the_policy_does_is_executed_and_not_taught():
    """The shipped policy and the expert drive in turn; the episode ends well, and replays."""
    pytest.importorskip("mani_skill")
    recorder = corrections.Corrected(PUSH, task="pushcube", picture_every=8, noise=False)
    seed = next(seed for seed in range(100) if list(corrections.driven(seed, 3)) == [True, False, True])
    episode = recorder.episode(seed)
    again = recorder.episode(seed)
    recorder.episode(seed + 1)
    for name, array in episode.items():
        np.testing.assert_array_equal(array, again[name])
    taught, action, executed = episode["taught"], episode["action"], episode["executed"]
    assert not taught[:8].any() and taught[8:16].all()
    np.testing.assert_array_equal(action[taught], executed[taught])
    assert (np.abs(action - executed)[~taught].max(1) > 0).all()
    simulator = recorder.simulator
    simulator.reset([seed])
    success = [bool(simulator.step(step[None])[1][0]) for step in executed]
    np.testing.assert_array_equal(simulator.qpos()[0].numpy(), episode["qpos"][-1])
    assert any(success)

    recorder.close()
