"""The command around a fake policy and a fake simulator, and at the end around the real ones."""

import dataclasses
import errno
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rollout
from par_jax import evaluation, recording
from par_jax.config import TINY, Config, to_dict
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.tasks import get_task
from tests import demos
from tests.flags import ROLLOUT_FLAGS

_META = {
    "stage": "policy",
    "tasks": ["pushcube"],
    "instructions": [get_task("pushcube").instruction],
    "config": {"name": "tiny"},
    "dataset": {"control_mode": "pd_joint_pos", "picture_size": [128, 128]},
}


class FakePolicy:
    config = TINY
    step = 7
    params = {"kernel": np.arange(4.0, dtype=np.float32)}

    @classmethod
    def load(cls, folder: Path, adjust: Callable[[Config], Config]) -> "FakePolicy":
        policy = cls()
        policy.config = adjust(policy.config)
        return policy

    def init(self, key: jax.Array, instruction: str) -> Any:
        assert instruction == get_task("pushcube").instruction
        return key

    def view(self, picture: np.ndarray) -> np.ndarray:
        return picture[16:112, 16:112]

    def act(self, carry: Any, picture: np.ndarray, predict_frame: bool = False) -> tuple[Any, Any, Any]:
        carry, now = jax.random.split(carry)
        info = SimpleNamespace(predicted=np.zeros((96, 96, 3), np.uint8) if predict_frame else None)
        return carry, jax.random.uniform(now, (8, 8), jnp.float32), info


class FakePool:
    """An episode ends well when the actions so far sum to a number that the seed chooses."""

    def __init__(self, workers: int):
        self.left = [0.0] * workers
        self.resets: list[int] = []

    def reset(self, i: int, seed: int) -> np.ndarray:
        self.resets.append(seed)
        self.left[i] = 500.0 if seed % 5 else 1e9
        return np.zeros((128, 128, 3), np.uint8)

    def segments(self, i: int) -> np.ndarray:
        return np.zeros((128, 128), np.uint8)

    def step_chunk(self, i: int, actions: np.ndarray, render: str = "last") -> Any:
        self.left[i] -= float(actions.sum())
        steps = len(actions)
        pictures = np.zeros((steps if render == "all" else 1, 128, 128, 3), np.uint8)
        return SimpleNamespace(pictures=pictures, steps=steps, success=self.left[i] < 0, reward=float(actions.sum()))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command with flags; returns the output folder and the fake pools that it made."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(_META))
    defaults = ROLLOUT_FLAGS | {
        "checkpoint": str(run),
        "task": "pushcube",
        "out": str(tmp_path / "out"),
        "episodes": 10,
    }
    pools: list[FakePool] = []

    def pool(task: str, meta: dict, cameras: tuple[str, ...], max_steps: int, workers: int) -> Any:
        assert cameras == ("render",)
        pools.append(FakePool(workers))
        return nullcontext(pools[-1])

    monkeypatch.setattr(rollout, "Policy", FakePolicy)
    monkeypatch.setattr(rollout, "_pool", pool)

    def call(**flags: object) -> Path:
        values = SimpleNamespace(**defaults | flags)
        monkeypatch.setattr(rollout, "FLAGS", values)
        rollout.main()
        return Path(values.out or run / "rdt")

    call.pools = pools
    call.run = run
    return call


def _rows(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("latenc")} for row in rows]
    return sorted(rows, key=lambda row: (row["policy_seed"], row["seed"]))


def test_the_command_writes_rows_videos_and_a_summary(command, capsys):
    out = command()
    rows = _rows(out)
    assert [row["seed"] for row in rows] == list(range(20241201, 20241211))
    assert {row["task"] for row in rows} == {"pushcube"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["success_rate"] == 0.8
    assert summary["wilson_95"] == list(evaluation.wilson(8, 10))
    assert summary["latency_ms"]["median"] > 0
    assert summary["checkpoint"]["step"] == 7
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["cameras"] == ["render"]
    assert summary["seeds"] == [row["seed"] for row in rows]
    assert sorted(p.name for p in (out / "videos").iterdir()) == [
        f"20241201-0.{kind}" for kind in ("mp4", "npz", "png")
    ]
    recorded = recording.read(out / "videos" / "20241201-0.npz")
    assert (recorded.seed, recorded.policy_seed, recorded.steps[-1]) == (20241201, 0, recorded.steps.max())
    said = capsys.readouterr().out
    assert "success 8 of 10: 80.0%" in said
    assert "the protocol asks for 125" in said


def test_the_result_does_not_depend_on_workers_or_videos(command, tmp_path):
    one = _rows(command(workers=1, videos=0, out=str(tmp_path / "one")))
    two = _rows(command(workers=3, videos=2, out=str(tmp_path / "two")))
    assert [row | {"filmed": None} for row in one] == [row | {"filmed": None} for row in two]
    other = _rows(command(seed=3, out=str(tmp_path / "other")))
    assert [row["seed"] for row in other] == [row["seed"] for row in one]
    assert [row["return"] for row in other] != [row["return"] for row in one]


def test_a_second_call_only_makes_what_is_missing(command):
    out = command(episodes=4)
    before = (out / "rollouts.jsonl").read_text()
    command(episodes=6)
    assert (out / "rollouts.jsonl").read_text().startswith(before)
    assert set(command.pools[1].resets) == {20241205, 20241206}
    command(episodes=6)
    assert len(command.pools) == 2, "nothing was missing: no simulator is started"


def test_an_interrupted_run_goes_on_to_the_same_rows(command, tmp_path, monkeypatch):
    whole = _rows(command(out=str(tmp_path / "whole"), videos=0))
    append, written = rollout.Results.append, []

    def interrupted(self: Any, row: dict) -> None:
        append(self, row)
        written.append(row)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(rollout.Results, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command(out=str(tmp_path / "cut"), videos=0)
    monkeypatch.setattr(rollout.Results, "append", append)
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert _rows(command(out=str(tmp_path / "cut"), videos=0)) == whole


def test_other_settings_are_refused_until_overwritten(command):
    out = command(episodes=2)
    with pytest.raises(UserError, match=r"max_steps: 400 != 120; protocol: rdt != maniskill"):
        command(protocol="maniskill", episodes=2)
    command(protocol="maniskill", episodes=2, overwrite=True)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["protocol"], summary["max_steps"], summary["episodes"]) == ("maniskill", 120, 2)


def test_a_policy_may_look_back_on_less_than_it_was_trained_to(command):
    out = command(episodes=2, context=1)
    assert json.loads((out / "summary.json").read_text())["context"] == 1
    with pytest.raises(UserError, match="context: 1 != 3"):
        command(episodes=2)


def test_frames_may_be_denoised_in_other_steps_than_the_presets(command):
    out = command(episodes=2, frame_steps=3)
    assert json.loads((out / "summary.json").read_text())["frame_steps"] == 3
    with pytest.raises(UserError, match="frame_steps: 3 != 2"):
        command(episodes=2)


def test_another_checkpoint_is_refused(command, monkeypatch):
    command(episodes=2)
    monkeypatch.setattr(FakePolicy, "params", {"kernel": np.ones(4, np.float32)})
    with pytest.raises(UserError, match="checkpoint.checksum"):
        command(episodes=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": None}, "say which task"),
        ({"task": "foldcloth"}, "unknown task 'foldcloth'"),
        ({"protocol": "libero"}, "unknown protocol 'libero'"),
        ({"episodes": 126}, "give 1 to 125"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"checkpoint": "/no/such/run"}, "holds no checkpoint"),
        ({"task": "pickcube"}, "was trained on pushcube"),
        ({"context": 4}, "--context=4: this policy was trained to look back on 3 packages"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(command, flags, message):
    with pytest.raises(UserError, match=message) as error:
        command(**flags)
    assert "\n" not in str(error.value)
    assert not (command.run.parent / "out").exists()


def test_a_corrupt_checkpoint_is_refused(command):
    (command.run / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        command()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "vae"}, "holds a vae, not a policy"),
        ({"dataset": _META["dataset"] | {"control_mode": "pd_ee_delta_pose"}}, "use --protocol=maniskill"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(command, change, message):
    (command.run / "config.json").write_text(json.dumps(_META | change))
    with pytest.raises(UserError, match=message):
        command()


def _released(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_META | {"released": {"checksum": 0}}))


def test_without_a_run_the_shipped_checkpoint_gives_a_quick_look(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rollout, "SHIPPED", tmp_path / "repository" / "checkpoints")
    short = dataclasses.replace(evaluation.PROTOCOLS["rdt"], episodes=7)
    monkeypatch.setitem(evaluation.PROTOCOLS, "rdt", short)
    asked = {"checkpoint": None, "out": None, "episodes": None}
    with pytest.raises(UserError, match="runs/pushcube holds no checkpoint"):
        command(**asked)
    _released(tmp_path / "repository" / "checkpoints" / "pushcube")
    command(**asked)
    out = tmp_path / "runs" / "pushcube-shipped" / "rdt"
    assert len(_rows(out)) == 5
    said = capsys.readouterr().out
    assert "checkpoints/pushcube, which is shipped (runs/pushcube holds no run)" in said
    assert "asks for 7 rollouts; --episodes=7 goes on" in said
    command(**asked | {"protocol": "rdt"})
    assert len(_rows(out)) == 7
    assert [path.name for path in (tmp_path / "repository" / "checkpoints" / "pushcube").iterdir()] == ["config.json"]


def test_a_run_comes_before_what_is_shipped(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rollout, "SHIPPED", tmp_path / "checkpoints")
    _released(tmp_path / "checkpoints" / "pushcube")
    (tmp_path / "runs").mkdir()
    command.run.rename(tmp_path / "runs" / "pushcube")
    command(checkpoint=None, out=None, episodes=2)
    assert "checkpoint: runs/pushcube\n" in capsys.readouterr().out
    assert len(_rows(tmp_path / "runs" / "pushcube" / "rdt")) == 2


def test_what_is_shipped_is_found_beside_the_package():
    assert Path(__file__).resolve().parents[2] / "checkpoints" == rollout.SHIPPED


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(command):
    with pytest.raises(UserError, match="finds no GPU"):
        command(device="gpu")


def test_a_full_disk_keeps_what_is_written(command, monkeypatch):
    out = command(episodes=2)
    before = (out / "rollouts.jsonl").read_text()

    def full(self: Any, row: dict) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rollout.Results, "append", full)
    with pytest.raises(UserError, match="the disk of .* is full"):
        command(episodes=4)
    assert (out / "rollouts.jsonl").read_text() == before


def test_no_vulkan_is_one_sentence_before_the_simulator_starts(monkeypatch):
    from par_jax.sim import vulkan

    def missing() -> None:
        raise UserError("no Vulkan driver was found")

    monkeypatch.setattr(vulkan, "check", missing)
    with pytest.raises(UserError, match="no Vulkan driver"):
        rollout._pool("pushcube", _META, ("render",), 400, 2)


def test_the_shell_sees_one_sentence_and_a_status():
    command = [sys.executable, "-m", "experiments.rollout", "--task=foldcloth"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown task 'foldcloth': choose one of pushcube, pickcube, stackcube"


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Rolls an untrained policy out in the real simulator, 20 steps in each of 3 states: it flails."""
    pytest.importorskip("mani_skill")
    config = demos.SMALL
    meta = _META | {
        "config": to_dict(config),
        "dataset": {"control_mode": "pd_joint_pos", "picture_size": list(config.picture.size)},
        "statistics": {"low": [-1.0] * 8, "high": [1.0] * 8},
    }
    demos.make_run(tmp_path / "run", lambda rngs: PAR(config, rngs=rngs), meta)
    demos.make_run(tmp_path / "run" / "vae", lambda rngs: VAE(config.vae, rngs=rngs), meta | {"stage": "vae"})
    short = dataclasses.replace(evaluation.PROTOCOLS["rdt"], max_steps=20)
    monkeypatch.setitem(evaluation.PROTOCOLS, "rdt", short)
    monkeypatch.setattr(rollout.Policy, "load", functools.cache(rollout.Policy.load))  # compiled once

    def roll_out(workers, videos):
        out = tmp_path / f"out{workers}"
        flags = {"checkpoint": str(tmp_path / "run"), "task": "pushcube", "out": str(out), "protocol": "rdt"}
        flags |= {"episodes": 3, "workers": workers, "videos": videos}
        monkeypatch.setattr(rollout, "FLAGS", SimpleNamespace(**ROLLOUT_FLAGS | flags))
        rollout.main()
        return out, [row | {"filmed": None} for row in _rows(out)]

    return roll_out


def test_a_checkpoint_rolls_out_in_the_real_simulator(real):
    out, rows = real(workers=1, videos=1)
    assert len({row["return"] for row in rows}) == 3
    summary = json.loads((out / "summary.json").read_text())
    assert summary["checkpoint"] | {"checksum": 0} == {"preset": "small-test", "step": 1, "checksum": 0}
    assert (out / "videos" / "20241201-0.mp4").stat().st_size > 1000
    recorded = recording.read(out / "videos" / "20241201-0.npz")
    crop = demos.SMALL.picture.crop
    assert recorded.segments.shape == (3, *crop) and set(np.unique(recorded.segments)) > {0, 1}


@pytest.mark.slow
def test_workers_and_videos_change_no_rollout(real):
    assert real(workers=1, videos=0)[1] == real(workers=2, videos=1)[1]
