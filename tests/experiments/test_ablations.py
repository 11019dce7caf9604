"""The command around fake runs, and at the end around real training."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from absl import flags

from experiments import ablation_table, ablations
from par_jax.config import PRESETS, to_dict
from par_jax.errors import UserError
from par_jax.evaluation import newcombe, wilson
from par_jax.variants import POLICIES, vary
from tests.demos import SMALL, make_demos
from tests.small_finetune import BLIND

_ROOT = Path(__file__).parents[2]
_REAL = ablations.call
_costs = functools.cache(ablation_table.costs)  # counted once a variant
FLAGS = flags.FLAGS


def _value(words, name):
    return next((word.split("=", 1)[1] for word in words if word.startswith(f"--{name}=")), None)


def _fake(words):
    """What the commands leave behind: every variant but the full one fails in half of its rollouts."""
    if words[0] == ablations.ROLL_OUT:
        episodes, out = int(_value(words, "episodes")), Path(_value(words, "out"))
        wins = episodes if "full" in out.parent.name else episodes // 2
        out.mkdir(parents=True)
        (out / "summary.json").write_text(json.dumps({"successes": wins, "episodes": episodes}))
        return
    if "--stage=vae" in words:
        folder, config = Path(_value(words, "workdir")) / "vae", SMALL
    else:
        folder = Path(_value(words, "workdir"))
        config = vary(SMALL, _value(words, "variant") or "full", _value(words, "policy") or "par")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": to_dict(config), "stage": "policy", "complete": True}))
    lines = [
        {"step": 60, "split": "train", "loss": 1.0, "steps_per_second": 2.0},
        {"step": 60, "split": "validation", "chunk_0": 9.0, "history_masked": 9.0, "teacher_forced": 9.0},
        {"step": 120, "split": "train", "loss": 1.0, "steps_per_second": 1.0},
        {"step": 120, "split": "validation", "chunk_0": 0.1, "history_masked": 0.2, "teacher_forced": 0.3},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls `main` with words of the command line; `calls` are the commands that it ran."""
    known = set(FLAGS)
    ablations.define_flags()
    monkeypatch.setitem(PRESETS, SMALL.name, SMALL)
    monkeypatch.setitem(PRESETS, BLIND.name, BLIND)
    calls = []

    def call(words):
        calls.append(words)
        _fake(words)

    monkeypatch.setattr(ablations, "call", call)
    monkeypatch.setattr(ablation_table, "costs", _costs)

    def run(*words):
        for name in FLAGS:
            FLAGS[name].unparse()
        given = ["--task=pushcube", f"--preset={SMALL.name}", f"--out={tmp_path / 'out'}", "--episodes=10"]
        FLAGS(["ablations", *given, *words])
        ablations.main()
        return tmp_path / "out"

    run.calls = calls
    yield run
    for name in set(FLAGS) - known:
        delattr(FLAGS, name)


def test_every_run_gets_the_same_data_budget_and_vae(command):
    out = command("--variants=full,mlp,dp", "--seeds=0,1", "--steps=7", "--vae_steps=3", "--batch=2", "--data=data/x")
    vae, *runs = [words for words in command.calls if words[0] == ablations.TRAIN]
    assert {"--stage=vae", "--steps=3", f"--workdir={out}", "--data=data/x"} <= set(vae)
    assert not any(word.startswith(("--batch", "--vae_steps")) for word in vae)
    assert [(_value(words, "variant"), _value(words, "policy"), _value(words, "seed")) for words in runs] == [
        (variant, policy, seed) for seed in "01" for variant, policy in (("full", None), ("mlp", None), (None, "dp"))
    ]
    same = {"--steps=7", "--batch=2", "--data=data/x", f"--vae={out / 'vae'}", "--task=pushcube"}
    assert all(same <= set(words) for words in runs)
    rollouts = [words for words in command.calls if words[0] == ablations.ROLL_OUT]
    assert len(rollouts) == 6
    assert {"--protocol=rdt", "--episodes=10", f"--checkpoint={out / 'dp-1'}"} <= set(rollouts[-1])


def test_the_table_has_intervals_and_differences(command, capsys):
    out = command("--variants=full,mlp", "--seeds=0,1")
    full, mlp = json.loads((out / "table.json").read_text())["rows"]
    assert (full["successes"], full["episodes"], full["seeds"]) == (20, 20, 2)
    assert (mlp["successes"], mlp["wilson_95"]) == (10, list(wilson(10, 20)))
    assert (mlp["difference"], mlp["difference_95"]) == (-0.5, list(newcombe((10, 20), (20, 20))))
    assert "difference" not in full
    assert mlp["minutes"] == pytest.approx(1.5) and mlp["chunk_0"] == pytest.approx(0.1)
    assert 0 < mlp["parameters"] < full["parameters"]
    text = (out / "table.md").read_text()
    assert "| 10 of 20: 50.0% (95% interval 29.9 to 70.1%) | -50.0 (-70.1 to -24.3) |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert text in capsys.readouterr().out


def test_what_is_finished_is_not_repeated_and_more_may_be_asked_for(command):
    out = command("--variants=full")
    first = len(command.calls)
    command("--variants=full,bct")
    assert [words[0] for words in command.calls[first:]] == [ablations.TRAIN, ablations.ROLL_OUT]
    assert [row["variant"] for row in json.loads((out / "table.json").read_text())["rows"]] == ["full", "bct"]
    (out / "full-0" / "rdt" / "summary.json").unlink()
    (out / "full-0" / "rdt").rmdir()
    command("--variants=full", "--episodes=20")
    assert "--episodes=20" in command.calls[-1]


def test_runs_share_their_latents(command, monkeypatch):
    fake = ablations.call

    def encoding(words):
        fake(words)
        if words[0] == ablations.TRAIN and not (made := Path(_value(words, "workdir")) / "vae" / "latents").exists():
            made.mkdir(parents=True)
            (made / "latents-0.npy").write_bytes(b"numbers")

    monkeypatch.setattr(ablations, "call", encoding)
    out = command("--variants=full,mlp", "--vae=elsewhere/vae")
    full, mlp = (out / name / "vae" / "latents" / "latents-0.npy" for name in ("full-0", "mlp-0"))
    assert mlp.samefile(full)


def test_a_stop_keeps_what_is_finished(command, monkeypatch):
    fake = ablations.call

    def stopped(words):
        if "--variant=mlp" in words:
            raise KeyboardInterrupt
        fake(words)

    monkeypatch.setattr(ablations, "call", stopped)
    with pytest.raises(KeyboardInterrupt):
        command("--variants=full,mlp")
    monkeypatch.setattr(ablations, "call", fake)
    command.calls.clear()
    command("--variants=full,mlp")
    assert [_value(words, "variant") for words in command.calls] == ["mlp", None]


def test_variants_that_change_nothing_are_left_out(command, capsys):
    out = command()
    said = capsys.readouterr().out
    for name in ("no_lookahead", "from_scratch"):
        assert f"{name} is left out: it changes nothing about preset small-test with these flags" in said
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [
        name for name in ablations.NAMES if name not in ("no_lookahead", "from_scratch")
    ]
    command.calls.clear()
    command("--variants=no_lookahead", "--lookahead=2")
    assert all("--lookahead=2" in words for words in command.calls if words[0] == ablations.TRAIN)


def test_a_vae_that_is_given_is_passed_on(command):
    command("--variants=full", "--vae=elsewhere/vae")
    assert [_value(words, "vae") for words in command.calls] == ["elsewhere/vae", None]


def test_a_task_may_have_several_folders(command):
    out = command("--variants=full", "--task=pushcube,pushcube", "--data=data/a,data/b", "--vae=elsewhere/vae")
    train, roll_out = command.calls
    assert {"--task=pushcube,pushcube", "--data=data/a,data/b"} <= set(train)
    assert _value(roll_out, "task") == "pushcube"
    assert json.loads((out / "table.json").read_text())["title"].startswith("pushcube, preset")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--task=pushcube,pickcube"], "compare on one task at a time"),
        (["--out="], "say what to compare on and where to"),
        (["--variant=mlp"], "--variant is set by this command, run by run"),
        (["--workdir=runs/x"], "--workdir is set by this command"),
        (["--variants=full,half"], "unknown variant 'half': choose of full, no_transformer"),
        (["--variants=par"], "unknown variant 'par'"),
        (["--seeds=0,one"], "--seeds=0,one: write whole numbers"),
        (["--protocol=libero"], "unknown protocol 'libero'"),
        (["--episodes=126"], "give 1 to 125"),
        (["--preset=huge"], "unknown preset 'huge'"),
    ],
)
def test_mistakes_are_one_sentence_and_run_nothing(command, words, sentence):
    with pytest.raises(UserError, match=sentence):
        command(*words)
    assert not command.calls


def test_a_command_that_fails_ends_all_with_a_sentence():
    with pytest.raises(UserError, match="python -m timeit .* ended with status 1"):
        ablations.call(["timeit", "-n", "1", "raise ValueError"])


def test_what_stops_the_command_stops_the_one_that_it_runs(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"

    def stop():
        while not mark.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # as app.run does; it may have been ignored
    threading.Thread(target=stop, daemon=True).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            ablations.call(["timeit", "-n", "1", child])
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert time.monotonic() - began < 200  # timeit would sleep five times
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_the_real_commands_take_what_they_are_given(command, monkeypatch, tmp_path):
    """Trains a frame VAE and two policies of a few steps; of the rollouts the flags alone are read."""
    monkeypatch.chdir(_ROOT)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(ablations, "TRAIN", "tests.small_finetune")
    said = []

    def call(words):
        if words[0] == ablations.TRAIN:
            _REAL(words)
            return
        absent = [word.replace("--checkpoint=", "--checkpoint=nowhere/") for word in words]
        done = subprocess.run([sys.executable, "-m", *absent], capture_output=True, text=True, check=False)
        said.append(done.stderr)
        _fake(words)

    monkeypatch.setattr(ablations, "call", call)
    data = make_demos(tmp_path / "data")
    out = command(f"--data={data}", f"--preset={BLIND.name}", "--variants=mlp,bct", "--steps=2", "--vae_steps=2")
    mlp, bct = json.loads((out / "table.json").read_text())["rows"]
    assert (mlp["steps"], bct["steps"]) == (2, 2) and mlp["parameters"] == bct["parameters"]
    assert mlp["chunk_0"] != bct["chunk_0"] and mlp["minutes"] > 0
    assert all("holds no checkpoint" in text for text in said) and len(said) == 2


def test_minutes_count_each_step_once():
    lines = [
        {"step": 1, "split": "train"},  # the first step compiles and has no speed
        {"step": 61, "split": "train", "steps_per_second": 1.0},
        {"step": 61, "split": "validation", "loss": 1.0},
        {"step": 121, "split": "train", "steps_per_second": 0.5},
    ]
    assert ablation_table.minutes(lines) == pytest.approx(3.0)


def test_every_policy_but_ours_is_in_the_table():
    assert set(POLICIES) - set(ablations.NAMES) == {"par"}
