"""The command on several processes: they train as one, stop as one, and go on under another mesh."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from par_jax.checkpoint import load_params
from par_jax.trees import flatten
from tests.demos import make_demos
from tests.model.random_vae import make_vae
from tests.sharded import free_address, virtual
from tests.small_finetune import BLIND

_ROOT = Path(__file__).parents[2]
# The same in less time, without the command: tests/test_sharding.py.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Demonstrations in `data`, a frame VAE in `vae`, and in `whole` a run of one process on one device."""
    folder = tmp_path_factory.mktemp("processes")
    make_demos(folder / "data")
    make_vae(folder / "vae", BLIND)
    process = start(folder, "whole", 1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder


def start(base: Path, name: str, devices: int, *more: str) -> subprocess.Popen:
    """The command in a process that sees so many devices."""
    flags = {
        "task": "pushcube",
        "preset": BLIND.name,
        "data": base / "data",
        "workdir": base / name,
        "vae": base / "vae",
        "batch": 8,
        "steps": 4,
        "learning_rate": 1e-5,  # see tests.sharded
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 3,
    }
    words = [f"--{key}={value}" for key, value in flags.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.small_finetune", *words, *more],
        cwd=_ROOT,
        env=virtual(devices) | {"JAX_COMPILATION_CACHE_DIR": str(base / "compiled")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(base: Path, name: str, *more: str) -> list[subprocess.Popen]:
    """The command in two processes that see two devices each."""
    together = [f"--coordinator={free_address()}", "--processes=2", *more]
    return [start(base, name, 2, *together, f"--process={number}") for number in range(2)]


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def stopped(base):
    """What two processes said of whom the second got a signal."""
    both = start_two(base, "parts", "--mesh=data:2,fsdp:2")
    while all(process.poll() is None for process in both) and len(lines(base / "parts")) < 2:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, said
    return said


def test_a_signal_to_one_process_stops_all_and_the_first_one_speaks(base, stopped):
    assert "4 cpu devices (data:2,fsdp:2) of 2 processes" in stopped[0] and "stopped at step" in stopped[0]
    assert "step" not in stopped[1]
    assert 1 <= newest(base / "parts") < 4


@pytest.mark.usefixtures("stopped")
def test_one_process_goes_on_under_another_mesh_to_the_same_numbers(base):
    step = newest(base / "parts")
    last = start(base, "parts", 4, "--mesh=fsdp:4")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0 and f"going on from step {step}" in said, said
    assert_same(base, "parts")


def newest(folder: Path) -> int:
    return max(int(path.name) for path in (folder / "checkpoints").iterdir())


def assert_same(base: Path, name: str) -> None:
    """Losses and parameters of a run are those of `whole`."""
    ours, theirs = lines(base / name), lines(base / "whole")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 4]
    for line, other in zip(ours, theirs, strict=True):
        for key in line.keys() - {"steps_per_second"}:
            assert line[key] == (other[key] if key == "split" else pytest.approx(other[key], abs=1e-5)), key
    for kind in ("params", "ema"):
        arrays, others = (flatten(load_params(base / folder, kind)[2]) for folder in (name, "whole"))
        for key, array in arrays.items():
            np.testing.assert_allclose(array, others[key], atol=1e-6, err_msg=key)


def test_a_mistake_ends_all_processes_with_the_same_sentence(base):
    both = start_two(base, "whole", "--seed=1")
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert "whole holds a run with other settings (there != asked for): seed: 0 != 1" in said
        assert "Traceback" not in said
