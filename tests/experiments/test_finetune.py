"""The command itself: in this process where it ends with a sentence, in its own where it is killed."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import devices, finetune, training
from par_jax.checkpoint import load_params
from par_jax.config import PRESETS, TINY
from par_jax.errors import UserError
from par_jax.nn.stack import KEPT
from par_jax.release import SHIPPED
from par_jax.trees import flatten
from tests.demos import SMALL, make_demos
from tests.flags import training_flags

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demos(tmp_path_factory.mktemp("demos") / "data")


@pytest.fixture
def command(monkeypatch, tmp_path, data):
    """Calls `main` with the small preset and the flags given."""
    monkeypatch.setitem(PRESETS, SMALL.name, SMALL)
    monkeypatch.setattr(training.signal, "signal", lambda *_: None)
    monkeypatch.setattr(devices, "keep_compiled", lambda _: None)

    def call(**changes: object) -> None:
        values = training_flags(**{"data": str(data), "workdir": str(tmp_path / "run"), **changes})
        for module in (training, finetune):
            monkeypatch.setattr(module, "FLAGS", values)
        finetune.main()

    return call


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": None}, "say which task"),
        ({"task": "pushcub"}, "unknown task 'pushcub': choose one of pushcube"),
        ({"preset": "huge"}, "unknown preset 'huge': choose one of tiny"),
        ({"stage": "both"}, "unknown stage 'both'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"remat": "half"}, "unknown remat 'half': choose none, full or dots"),
        (
            {"packages": 1},
            "looks back on 2 packages learns nothing of them from sequences of 1: give --packages=2 or more",
        ),
        ({"context": 5, "variant": "no_transformer"}, "sequences of 2: give --packages=5 or more, or --context=2"),
        ({"remat": "full", "stage": "vae"}, "--remat is of the policy's transformers"),
        ({"optimizer": "muon", "stage": "vae"}, "--optimizer is of the policy's transformers"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion': choose adamw or muon"),
        ({"action_shift": 4.0, "schedule": "ddpm"}, "the noise schedule 'ddpm' has no shift: give --action_shift=1"),
        ({"frame_shift": 4.0, "schedule": "ddpm"}, "the noise schedule 'ddpm' has no shift: give --frame_shift=1"),
        ({"accumulate": 3}, "a batch of 4 rows does not divide into 3 parts over 1 devices"),
        ({"accumulate": 3, "stage": "vae"}, "a batch of 4 rows does not divide into 3 parts"),
        ({"mesh": "data"}, "--mesh=data is no mesh: write each axis once"),
        ({"mesh": "model:2"}, "unknown axis 'model'; the axes are data and fsdp"),
        ({"mesh": "data:2,fsdp:2"}, "wants 4 devices, and there are 1"),
        ({"processes": 2}, "--processes and --process go with --coordinator=host:port"),
        ({"coordinator": "auto", "process": 0}, "--processes and --process go with --coordinator=host:port"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "--coordinator=here is no address"),
        ({"coordinator": "here:1234", "processes": 2}, "goes with --processes, .*, and --process"),
        ({"coordinator": "here:1234", "processes": 2, "process": 2}, "no --process=2 of 2: they count from 0"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"task": "pickcube"}, "has task pushcube, but pickcube was asked for"),
        (
            {"task": "pushcube,pushcube", "data": None},
            "the same data twice, data/pushcube,data/pushcube: name each task once",
        ),
        ({"task": "pushcube,pickcube"}, "--data names 1 folders for 2 tasks"),
        ({"preset": "tiny"}, r"has picture_size \[40, 40\], but \[128, 128\] was asked for"),
        ({"data": "nowhere"}, "no data folder at nowhere"),
        ({"vae": "nowhere"}, "nowhere holds no checkpoint"),
        ({"preset": "par"}, "begins with converted NOVA: give --init"),
        ({"preset": "physgen"}, "LoRA adapts weights that are there: give --init"),
        ({"preset": "physgen", "lora_rank": 0}, "begins with converted NOVA: give --init"),
        ({"variant": "half"}, "unknown variant 'half': choose one of full, no_transformer"),
        ({"sampler": "ddim"}, "with the noise schedule 'flow' choose one of flow"),
        ({"schedule": "edm"}, "unknown noise schedule 'edm'"),
        ({"cameras": "render,side"}, "'side'"),
        ({"cameras": "render,base"}, "base"),
        ({"init": "nowhere"}, "nowhere is no converted checkpoint"),
        ({"init": "nowhere", "stage": "vae"}, "--stage=vae begins with a frame VAE: give that as --vae"),
        ({"vae": "nowhere", "stage": "vae"}, "nowhere holds no checkpoint"),
        ({"keep_scale": True}, "--keep_scale keeps the scale of what --init names: give --init"),
        (
            {"vae": str(SHIPPED / "pushcube")},
            "holds a released policy: train a decoder for it first, --stage=vae --vae=",
        ),
        ({"init": str(SHIPPED / "pushcube")}, "was trained with preset 'tiny', not 'small-test': give --preset=tiny"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(command, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        command(**changes)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_task_may_have_several_folders(monkeypatch):
    monkeypatch.setattr(training, "FLAGS", training_flags(task="pushcube,pushcube", data="a,b"))
    assert training.demonstrations() == (("pushcube", "pushcube"), ["a", "b"])


def test_an_absent_gpu_is_a_sentence(command):
    with pytest.raises(UserError, match="no GPU on this machine: use --device=cpu"):
        command(device="gpu")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_a_sentence(command, monkeypatch, number):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("par_jax.workdir.write_json", fail)
    with pytest.raises(UserError, match=f"cannot write to .*run: {os.strerror(number)}"):
        command()


def test_flags_change_the_stage_that_is_asked_for(monkeypatch):
    flags = {"preset": "tiny", "steps": 7, "batch": 3, "learning_rate": 1e-5, "dtype": "bfloat16", "accumulate": 3}
    monkeypatch.setattr(training, "FLAGS", training_flags(remat="dots", **flags))
    config = training.configuration()
    assert (config.train.steps, config.train.batch, config.train.dtype) == (7, 3, "bfloat16")
    assert (config.train.remat, config.train.accumulate) == ("dots", 3)
    assert config.vae_train == TINY.vae_train
    monkeypatch.setattr(training, "FLAGS", training_flags(stage="vae", **flags))
    config = training.configuration()
    assert config.train == TINY.train
    assert (config.vae_train.steps, config.vae_train.learning_rate, config.vae_train.accumulate) == (7, 1e-5, 3)


def test_a_model_without_a_past_learns_from_single_packages(monkeypatch):
    monkeypatch.setattr(training, "FLAGS", training_flags(preset="tiny", packages=1, context=1))
    config = training.configuration()
    assert (config.model.context, config.train.packages) == (1, 1)


def test_every_remat_has_a_name_among_the_flags():
    assert tuple(KEPT) == training.CHOICES["remat"]


def test_flags_change_the_model(monkeypatch):
    changes = {
        "variant": "bins",
        "lookahead": 3,
        "relative_actions": True,
        "one_scale": True,
        "schedule": "ddpm",
        "sampler": "ddim",
        "action_steps": 7,
    }
    monkeypatch.setattr(training, "FLAGS", training_flags(preset="tiny", **changes))
    config = training.configuration()
    assert config.picture == TINY.picture
    assert (config.model.action_head, config.model.lookahead) == ("bins", 3)
    assert config.model.relative_actions and config.model.one_scale
    assert (config.diffusion.chosen, config.diffusion.action_steps) == ("ddim", 7)


def test_flags_shift_the_denoising_times_and_choose_the_optimizer(monkeypatch):
    monkeypatch.setattr(
        training, "FLAGS", training_flags(preset="tiny", action_shift=4.0, frame_shift=3.0, optimizer="muon")
    )
    config = training.configuration()
    assert (config.diffusion.action_shift, config.diffusion.frame_shift, config.train.optimizer) == (4.0, 3.0, "muon")
    assert config.vae_train == TINY.vae_train


def test_a_flag_moves_the_crops_and_nothing_else_of_the_picture(monkeypatch):
    monkeypatch.setattr(training, "FLAGS", training_flags(preset="tiny", picture_shift=0))
    config = training.configuration()
    assert (TINY.picture.shift, config.picture.shift) == (2, 0)
    assert dataclasses.replace(config.picture, shift=2) == TINY.picture


class Runs:
    """Runs of the command in processes of their own; they share compiled programs."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        self.environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}

    def start(self, name: str, **flags: object) -> subprocess.Popen:
        given = {
            "task": "pushcube",
            "preset": SMALL.name,
            "data": self.data,
            "workdir": self.folder / name,
            "log_every": 1,
            "eval_every": 6,
            "checkpoint_every": 2,
        }
        words = [f"--{key}={value}" for key, value in (given | flags).items()]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.small_finetune", *words],
            cwd=_ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, name: str, **flags: object) -> str:
        process = self.start(name, **flags)
        out, _ = process.communicate()
        assert process.returncode == 0, out
        return out

    def stop(self, name: str, number: signal.Signals, lines: int, stage: str = ".", **flags: object) -> str:
        """Sends a signal once the stage has written some lines of metrics; returns what the run printed."""
        process = self.start(name, **flags)
        path = self.folder / name / stage / "metrics.jsonl"
        while process.poll() is None and (not path.exists() or len(path.read_text().splitlines()) < lines):
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate()
        assert process.returncode == (128 + number if number != signal.SIGKILL else -number), out
        return out

    def assert_same(self, a: str, b: str) -> None:
        """Equal losses and parameters of both stages, bit for bit."""
        for stage in (".", "vae"):
            left, right = ((self.folder / name / stage) for name in (a, b))
            assert _losses(left) == _losses(right)
            assert json.loads((left / "config.json").read_text()) == json.loads((right / "config.json").read_text())
            for kind in ("params", "ema"):
                ours, theirs = (flatten(load_params(folder, kind)[2]) for folder in (left, right))
                assert ours.keys() == theirs.keys()
                for name, array in ours.items():
                    np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def _losses(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Whole runs are in `whole`: the command typed once, VAE and policy."""
    made = Runs(tmp_path_factory.mktemp("runs"), data)
    out = made.finish("whole")
    assert "training one first" in out and "finished: 12 steps" in out
    return made


def test_a_run_writes_all_that_a_rollout_needs(runs):
    config, meta, params = load_params(runs.folder / "whole")
    vae_config, vae_meta, vae = load_params(runs.folder / "whole" / "vae")
    assert (meta["step"], meta["stage"], vae_meta["stage"]) == (12, "policy", "vae")
    assert meta["instructions"] == ["Push the cube to the goal region in front of it."]
    assert len(meta["statistics"]["low"]) == config.model.action_dim == 8
    assert config.vae == vae_config.vae and config.vae.scaling_factor != 1.0
    assert all(np.isfinite(leaf).all() for leaf in flatten((params, vae)).values())
    lines = _losses(runs.folder / "whole")
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 13))
    seen = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in seen] == [6, 12]
    assert {"chunk_0", "history_masked", "teacher_forced", "action_loss", "frame_loss"} <= seen[0].keys()
    assert all(np.isfinite(value) for line in seen for value in list(line.values())[2:])


@pytest.mark.slow
def test_stopped_and_killed_in_both_stages_it_ends_as_if_never_stopped(runs):
    assert "stopped at step" in runs.stop("stopped", signal.SIGINT, 2, "vae")
    runs.stop("stopped", signal.SIGKILL, 8)
    assert "finished: 12 steps" in runs.finish("stopped")
    runs.assert_same("whole", "stopped")


def test_a_finished_run_says_so(runs):
    before = (runs.folder / "whole" / "metrics.jsonl").read_bytes()
    assert "finished: 12 steps" in runs.finish("whole")
    assert (runs.folder / "whole" / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_by_name(runs, command, data, tmp_path):
    whole = str(runs.folder / "whole")
    with pytest.raises(UserError, match=r"config.train.learning_rate: 0.0008 != 0.1; config.train.steps: 12 != 13"):
        command(workdir=whole, steps=13, learning_rate=0.1)
    with pytest.raises(UserError, match=r"dataset.episodes_wanted: 6 != 5"):
        command(workdir=whole, data=str(make_demos(tmp_path / "others", count=5)))
    with pytest.raises(UserError, match="seed: 0 != 1"):
        command(workdir=whole, seed=1)


def test_a_damaged_vae_is_a_sentence(runs, command, tmp_path):
    broken = tmp_path / "broken"
    (broken / "checkpoints" / "4").mkdir(parents=True)
    (broken / "config.json").write_text((runs.folder / "whole" / "vae" / "config.json").read_text())
    with pytest.raises(UserError, match="every checkpoint in .*broken.* is damaged"):
        command(vae=str(broken))


@pytest.mark.slow
def test_twenty_kills_at_random_moments(runs):
    flags = {"steps": 300, "vae_steps": 20, "checkpoint_every": 5, "eval_every": 100}
    runs.finish("long", **flags)
    chance = random.Random(0)
    for kill in range(20):
        process = runs.start("killed", **flags)
        if kill % 2:
            time.sleep(chance.uniform(0, 15))  # anywhere: while it starts, restores, trains, saves
        else:
            path = runs.folder / "killed" / "metrics.jsonl"
            before = path.read_text().count("\n") if path.exists() else 0
            while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= before):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))  # while it trains
        process.kill()
        process.communicate()
    runs.finish("killed", **flags)
    runs.assert_same("long", "killed")
