"""The benchmark's command: what it writes, and what it refuses. Its times are never judged here."""

import json
import math

import pytest

from experiments import benchmark
from par_jax.bench.hardware import Peaks
from par_jax.bench.subject import PARTS, WHOLE
from par_jax.config import PRESETS
from par_jax.errors import UserError
from tests.demos import SMALL
from tests.flags import MODEL_FLAGS

GIVEN = {
    **MODEL_FLAGS,
    "preset": SMALL.name,
    "batch": 2,
    "device": "cpu",
    "rounds": 3,
    "steps": 2,
    **dict.fromkeys(("checkpoint", "dtype", "peer", "parts", "train_batch", "remat", "topology", "suite", "json")),
    **dict.fromkeys(("frames", "train", "compile", "one_thread"), False),
    "peak_tflops": 0.1,
    "bandwidth": 10.0,
}


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Calls the command with the small preset and the flags given; what it wrote."""
    monkeypatch.setitem(PRESETS, SMALL.name, SMALL)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    class Flags:
        def __init__(self, **values):
            self.__dict__.update(values)

    def call(**changes):
        path = tmp_path / "found.json"
        monkeypatch.setattr(benchmark, "FLAGS", Flags(**{**GIVEN, "json": str(path), **changes}))
        benchmark.main()
        return json.loads(path.read_text())

    return call


def test_it_writes_each_part_its_floors_and_the_peer(measure, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("par_jax.bench.peer.MODES", ("eager",))
    found = measure(parts=["transformer"], peer="torch")
    (run,) = found["runs"]
    part = run["acting"]["transformer"]
    assert set(found) == {"device", "threads", "versions", "runs"} and run["batch"] == 2
    assert 0 < part["median_ms"] <= part["p99_ms"] and part["compile_s"] > 0
    # What is reached of the larger floor, of the peaks that were given.
    floor = 1e3 * max(part["flops"] / 0.1e12, part["bytes"] / 10e9)
    assert math.isclose(part["reached"], floor / part["median_ms"], rel_tol=1e-3)
    assert "eager: the transformer's results and ours differ by" in capsys.readouterr().out
    assert run["acting"]["torch over jax, transformer"]["eager"]["median"] > 0


def test_a_disturbed_measurement_of_the_peaks_does_not_count(measure, monkeypatch):
    looks = iter([Peaks(1e9, 50e9, "first"), Peaks(2e9, 20e9, "second")])
    monkeypatch.setattr("par_jax.bench.hardware.measured", lambda dtype: next(looks))
    (run,) = measure(parts=["action head"], peak_tflops=None, bandwidth=None)["runs"]
    assert (run["peaks"]["flops"], run["peaks"]["bandwidth"]) == (2e9, 50e9)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"batch": 0}, "--batch=0: at least one robot acts"),
        ({"parts": ["wheels"]}, f"unknown part 'wheels': choose of {', '.join(PARTS)}"),
        ({"parts": [WHOLE]}, "unknown part"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
        ({"variant": "nothing"}, "unknown variant 'nothing'"),
        ({"checkpoint": "nowhere"}, "nowhere holds no checkpoint"),
        ({"one_thread": True, "device": "gpu"}, "--one_thread is for CPUs"),
        ({"compile": True, "topology": "v5p:none"}, "cannot compile for --topology=v5p:none"),
        ({"suite": "gpu", "device": "auto"}, "jax finds no GPU on this machine"),
    ],
)
def test_mistakes_are_one_sentence(measure, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        measure(**flags)
