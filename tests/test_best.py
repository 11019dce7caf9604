import numpy as np
import pytest

from par_jax.best import SCORE, keep_best
from par_jax.checkpoint import Checkpoints, load_params
from par_jax.config import to_dict
from par_jax.workdir import BEST, write_json
from tests.demos import SMALL


@pytest.fixture
def run(tmp_path):
    """A run whose last checkpoint, of step 9, holds 9."""
    write_json(tmp_path / "config.json", {"config": to_dict(SMALL), "stage": "policy"})
    checkpoints = Checkpoints(tmp_path)
    arrays = {"kernel": np.full(3, 9.0, np.float32)}
    checkpoints.save(9, {"ema": arrays, "params": arrays}, {})
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


def see(run, step, chunk_0, masked, teacher=0.1):
    seen = {"chunk_0": chunk_0, "history_masked": masked, "teacher_forced": teacher}
    return keep_best(run, step, {"kernel": np.full(3, float(step), np.float32)}, seen)


def loaded(run, kind="ema"):
    _, meta, params = load_params(run, kind)
    assert params["kernel"].tolist() == [meta["step"]] * 3
    return meta["step"]


def test_the_best_without_a_past_is_what_a_rollout_gets(run):
    assert loaded(run) == 9
    assert see(run, 2, 0.3, 0.4) and loaded(run) == 2
    assert see(run, 4, 0.2, 0.4, teacher=9.0) and loaded(run) == 4
    assert not see(run, 6, 0.3, 0.35, teacher=0.0) and loaded(run) == 4
    assert see(run, 8, 0.1, 0.1) and loaded(run) == 8
    assert loaded(run, "params") == 9
    assert len(list((run / BEST / "checkpoints").iterdir())) == 2


def test_a_run_that_goes_on_judges_its_step_again(run):
    """A stop between the parameters and their score leaves parameters that the same step writes once more."""
    assert see(run, 4, 0.2, 0.2)
    (run / BEST / SCORE).unlink()
    assert see(run, 4, 0.2, 0.2) and loaded(run) == 4
    assert not see(run, 8, 0.2, 0.2)


def test_none_is_kept_where_there_is_nothing_to_judge(run):
    assert not see(run, 2, np.nan, 0.1) and loaded(run) == 9
    assert see(run, 4, 0.3, 0.3) and loaded(run) == 4
