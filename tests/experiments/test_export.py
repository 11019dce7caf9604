"""A policy that was exported acts as the policy itself, without the package."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.run_exported import ExportedPolicy
from par_jax import export, release, runs
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.policy import Policy
from tests.demos import SIZE, SMALL, make_demos, make_run

BATCH = 2
CONFIG = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, lookahead=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run's folder with made-up parameters."""
    base = tmp_path_factory.mktemp("export")
    run = runs.Run(("pushcube",), CONFIG, (make_demos(base / "data"),), base / "run")
    meta = run.meta("vae", run.episodes()) | {"complete": True}
    make_run(run.workdir / "vae", lambda rngs: VAE(CONFIG.vae, rngs=rngs), meta)
    make_run(run.workdir, lambda rngs: PAR(CONFIG, rngs=rngs), run.meta("policy", run.episodes()))
    return run.workdir


@pytest.fixture(scope="module")
def exported(checkpoint):
    out = checkpoint.parent / "out"
    export.export(checkpoint, out, BATCH, ("cpu",), lambda config: config)
    return out


def test_it_acts_as_the_policy_does(checkpoint, exported):
    pictures = np.random.default_rng(0).integers(0, 256, (3, BATCH, *SIZE, 3), np.uint8)
    policy, alone = ExportedPolicy(exported), Policy.load(checkpoint)
    policy.reset(seed=5)
    made = [policy.act(seen) for seen in pictures]
    for robot, key in enumerate(jax.random.split(jax.random.key(5), BATCH)):
        carry = alone.init(key, policy.about["instruction"])
        for seen, actions in zip(pictures, made, strict=True):
            carry, wanted, _ = alone.act(carry, seen[robot])
            np.testing.assert_allclose(actions[robot], wanted, rtol=1e-4, atol=1e-5)


def test_it_needs_nothing_of_the_package(exported, tmp_path):
    script = tmp_path / "robot.py"
    script.write_text((Path(__file__).parents[2] / "experiments" / "run_exported.py").read_text())
    block = "import sys; sys.modules.update(par_jax=None, flax=None, experiments=None)\n"
    script.write_text(block + script.read_text().split('"""', 2)[2])
    run = subprocess.run(
        [sys.executable, str(script), str(exported)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "8 actions of 8 numbers" in run.stdout


def test_it_says_what_it_is(exported):
    about = json.loads((exported / export.ABOUT).read_text())
    assert (about["task"], about["batch"], about["chunk"], about["cameras"]) == ("pushcube", 2, 8, ["render"])
    assert about["state"]["executed"] == ["float32", [2, 8, 8]]
    assert {path.name for path in exported.iterdir()} == {export.START, export.STEP, export.WEIGHTS, export.ABOUT}


def test_a_released_policy_is_exported_too(checkpoint, tmp_path):
    release.release(checkpoint, tmp_path / "small")
    export.export(tmp_path / "small", tmp_path / "out", 1, ("cpu",), lambda config: config)
    picture = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    policy, alone = ExportedPolicy(tmp_path / "out"), Policy.load(tmp_path / "small")
    policy.reset(seed=5)
    carry = alone.init(jax.random.split(jax.random.key(5), 1)[0], policy.about["instruction"])
    np.testing.assert_allclose(policy.act(picture)[0], alone.act(carry, picture[0])[1], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_told(checkpoint, exported, tmp_path):
    same = lambda config: config  # noqa: E731
    with pytest.raises(UserError, match="unknown platform 'npu': choose of cpu"):
        export.export(checkpoint, tmp_path / "out", 1, ("npu",), same)
    with pytest.raises(UserError, match="is not empty: name another --out"):
        export.export(checkpoint, exported, 1, ("cpu",), same)
    with pytest.raises(UserError, match="holds a vae, not a policy"):
        export.export(checkpoint / "vae", tmp_path / "out", 1, ("cpu",), same)
    with pytest.raises(UserError, match="holds no checkpoint"):
        export.export(tmp_path, tmp_path / "out", 1, ("cpu",), same)
