import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("mani_skill")

from experiments.collect import picture_size  # noqa: E402
from par_jax.data import episodes as disk  # noqa: E402
from par_jax.data.episodes import Episodes  # noqa: E402
from par_jax.errors import UserError  # noqa: E402
from par_jax.locks import locked  # noqa: E402
from par_jax.sim import collect  # noqa: E402
from par_jax.sim.collect import Settings  # noqa: E402

# A recorder without a simulator: the order of events is under test here. Seeds that end in 7 fail.
FAKE = """
import os, signal, time
from pathlib import Path
import numpy as np
from par_jax.data import episodes as disk
from par_jax.errors import UserError

class Recorder:
    def __init__(self, **arguments):
        self.arguments = arguments

    def block(self, folder, first, count):
        told = Path(folder).parent / "told"
        order = told.read_text().split() if told.exists() else []
        records = []
        for seed in range(first, first + count):
            if f"crash{seed}" in order:
                os.kill(os.getpid(), signal.SIGKILL)
            if f"full{seed}" in order:
                raise UserError("the disk is full: x")
            if f"hang{seed}" in order:
                (Path(folder) / f"{disk.shard_name(first)}.tmp").write_text("half")
                (Path(folder).parent / "hanging").write_text("")
                time.sleep(600)
            if seed % 10 != 7:
                random = np.random.default_rng(seed)
                records.append({
                    "action": random.normal(size=(2, 8)).astype(np.float32),
                    "qpos": np.zeros((3, 9), np.float32),
                    "seed": np.array([seed]),
                    **disk.join_pictures([b"a", b"b", b"c"]),
                })
            yield len(records)
        disk.write_shard(Path(folder), first, records)
"""

SMALL = Settings("pushcube", picture_size=(48, 64))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replaces the recorder; returns a function that says what goes wrong at which seed."""
    (tmp_path / "fake_recorder.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(collect, "_source", lambda settings: ("fake_recorder:Recorder", {}))
    return lambda *order: (tmp_path / "told").write_text(" ".join(order))


def contents(folder):
    """All bytes of all shards, by name."""
    return {path.name: path.read_bytes() for path in disk.shards(folder).values()}


def seeds(folder):
    data = Episodes(folder)
    return [int(data.numbers(index)["seed"][0]) for index in range(len(data))]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_blocks_are_the_needed_ones_whatever_the_workers(fake, tmp_path, workers):
    """38 of 40 wanted: two blocks hold 36 successes, so a third is made, and no fourth."""
    said = collect.collect(SMALL, tmp_path / "out", 38, workers)
    assert "38 demonstrations of pushcube (54 successes in 60 seeds" in said
    assert sorted(disk.shards(tmp_path / "out")) == [0, 20, 40]
    assert seeds(tmp_path / "out") == [seed for seed in range(60) if seed % 10 != 7][:38]


def test_more_episodes_extend(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "out", 10, 1)
    before = contents(tmp_path / "out")
    collect.collect(SMALL, tmp_path / "out", 30, 2)
    after = contents(tmp_path / "out")
    assert len(Episodes(tmp_path / "out")) == 30
    assert before.items() < after.items()


def test_a_finished_folder_needs_no_worker(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "out", 10, 1)
    fake("crash0")
    collect.collect(SMALL, tmp_path / "out", 12, 1)
    assert len(Episodes(tmp_path / "out")) == 12


def test_a_crash_keeps_what_is_finished_and_the_same_command_goes_on(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "whole", 60, 1)
    fake("crash45")
    with pytest.raises(UserError, match="a simulator process died with signal SIGKILL.*same command again"):
        collect.collect(SMALL, tmp_path / "out", 60, 1)
    assert sorted(disk.shards(tmp_path / "out")) == [0, 20]
    with pytest.raises(UserError, match="half-written: 36 of 60"):
        Episodes(tmp_path / "out")
    fake("crash5")
    collect.collect(SMALL, tmp_path / "out", 60, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_in_a_worker_is_the_users_sentence(fake, tmp_path):
    fake("full25")
    with pytest.raises(UserError, match="the disk is full"):
        collect.collect(SMALL, tmp_path / "out", 60, 2)
    assert 0 in disk.shards(tmp_path / "out") or not disk.shards(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_damaged_shard_is_made_anew(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "out", 30, 1)
    before = contents(tmp_path / "out")
    shard = tmp_path / "out" / disk.shard_name(20)
    shard.write_bytes(shard.read_bytes()[:5000])
    collect.collect(SMALL, tmp_path / "out", 30, 1)
    assert contents(tmp_path / "out") == before


def test_other_settings_are_refused_by_name(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "out", 5, 1)
    other = Settings("pushcube", "pd_ee_delta_pose", picture_size=(64, 64), cameras=("render", "hand"))
    says = (
        r"control_mode 'pd_joint_pos' there.*cameras \['render'\] there, \['render', 'hand'\] asked for.*picture_size"
    )
    with pytest.raises(UserError, match=says):
        collect.collect(other, tmp_path / "out", 5, 1)
    assert len(Episodes(tmp_path / "out")) == 5


def test_a_folder_from_before_there_were_cameras_and_takeovers_goes_on(fake, tmp_path):
    collect.collect(SMALL, tmp_path / "out", 5, 1)
    meta = disk.read_meta(tmp_path / "out")
    del meta["cameras"], meta["takeover"], meta["around"]
    disk.write_meta(tmp_path / "out", meta)
    with pytest.raises(UserError, match="cameras"):
        collect.collect(dataclasses.replace(SMALL, cameras=("base",)), tmp_path / "out", 30, 1)
    collect.collect(SMALL, tmp_path / "out", 30, 1)
    assert Episodes(tmp_path / "out", cameras=("render",)).meta["cameras"] == ["render"]


def test_a_folder_of_something_else_is_not_touched(fake, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        collect.collect(SMALL, tmp_path / "out", 5, 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_two_at_once_are_refused(fake, tmp_path):
    with locked(tmp_path / "out", ""), pytest.raises(UserError, match="another experiments.collect"):
        collect.collect(SMALL, tmp_path / "out", 5, 1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process_and_no_debris(fake, tmp_path, how):
    """The real parent process, stopped while a worker hangs in its second block."""
    fake("hang25")
    code = (
        "from par_jax.sim import collect\n"
        "from experiments import app, collect as command\n"
        "collect._source = lambda settings: ('fake_recorder:Recorder', {})\n"
        "command.define_flags(); app.run(command.main)"
    )
    out = tmp_path / "out"
    run = subprocess.Popen(
        [sys.executable, "-c", code, "--task=pushcube", "--episodes=60", f"--out={out}", "--workers=1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "hanging").exists():
        assert run.poll() is None
        time.sleep(0.1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    assert len(children.split()) == 1
    run.send_signal(how)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(children), 0)
    assert sorted(path.name for path in out.iterdir()) == [disk.META, disk.shard_name(0)]
    assert json.loads((out / disk.META).read_text())["shards"] == {"0": 18}


def command(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "experiments.collect", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (["--task=flycube"], {}, "unknown task 'flycube': choose one of pushcube"),
        ([], {}, "which task?"),
        (["--task=pushcube"], {"VK_ICD_FILENAMES": "/nonexistent"}, "mesa-vulkan-drivers"),
        (["--task=pushcube", "--device=gpu"], {"CUDA_VISIBLE_DEVICES": ""}, "no CUDA GPU here"),
        (["--task=pushcube", "--control_mode=telepathy"], {}, "unknown control mode"),
        (["--task=pushcube", "--cameras=render,wrist"], {}, "unknown camera 'wrist': name one or more of render, base"),
        (["--task=pushcube", "--cameras=hand,hand"], {}, "camera hand is named twice"),
        (["--task=pushcube", "--from=/nothing.h5"], {}, "no trajectory file /nothing.h5"),
        (["--task=pushcube", "--policy=/nothing"], {}, "/nothing"),
        (["--task=pickcube", "--policy=checkpoints/pushcube"], {}, "was trained on pushcube, not on pickcube"),
        (["--task=pushcube", "--motion", "--policy=checkpoints/pushcube"], {}, "leave one out"),
        (["--task=pushcube", "--takeover=0"], {}, "add --policy, or leave it out"),
        (["--task=pickcube", "--around"], {}, "--around is of pushcube's expert"),
        (["--task=pushcube", "--around", "--motion"], {}, "--around is of pushcube's expert"),
        (["pushcube"], {}, "unexpected argument 'pushcube'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, flags, environment, says):
    run = command(*flags, f"--out={tmp_path / 'out'}", **environment)
    assert run.returncode == 2
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_demonstrations_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    """The real simulator: one worker, and two of which each makes other blocks, give the same bytes."""
    monkeypatch.setattr(disk, "BLOCK", 1)
    collect.collect(SMALL, tmp_path / "one", 2, 1)
    collect.collect(SMALL, tmp_path / "two", 2, 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    data = Episodes(tmp_path / "one", task="pushcube", picture_size=(48, 64), control_mode="pd_joint_pos")
    assert seeds(tmp_path / "one") == [0, 1]
    pictures = data.pictures(1)
    assert pictures.shape == (data.lengths()[1] + 1, 48, 64, 3)
    assert np.abs(np.diff(pictures.astype(int), axis=0)).max((1, 2, 3)).min() > 0
    assert disk.statistics(data)["count"] == data.lengths().sum()


def test_a_picture_size_is_a_side_or_two():
    assert picture_size("128") == (128, 128)
    assert picture_size("496x784") == (496, 784)
    for text in ("8", "64x", "x64", "64x8", "big"):
        with pytest.raises(UserError, match="give a side of 16 pixels or more"):
            picture_size(text)
