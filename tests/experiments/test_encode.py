"""What encode does ahead of training, finetune finds done."""

import numpy as np
import pytest

from experiments import devices, encode, finetune, training
from par_jax import runs, stages
from par_jax.config import PRESETS
from par_jax.errors import UserError
from par_jax.loop import Result
from tests.demos import SMALL, make_demos
from tests.flags import training_flags
from tests.model.random_vae import make_vae


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Calls a command's `main` with the small preset and the flags given."""
    monkeypatch.setitem(PRESETS, SMALL.name, SMALL)
    monkeypatch.setattr(training.signal, "signal", lambda *_: None)
    monkeypatch.setattr(devices, "keep_compiled", lambda _: None)
    make_demos(tmp_path / "data")

    def call(command, **changes):
        values = training_flags(data=str(tmp_path / "data"), workdir=str(tmp_path / "run"), **changes)
        for module in (training, command):
            monkeypatch.setattr(module, "FLAGS", values)
        command.main()

    return call


def test_finetune_encodes_nothing_after_encode(given, monkeypatch, tmp_path, capsys):
    make_vae(tmp_path / "vae", SMALL)
    given(encode, vae=str(tmp_path / "vae"))
    assert "run is ready: " in capsys.readouterr().out
    (latents,) = (tmp_path / "run" / "vae" / "latents").iterdir()
    assert len(np.load(latents)) == sum(len(action) + 1 for action in actions(tmp_path))
    assert not (tmp_path / "run" / "config.json").exists()  # the training's settings are still open

    def fail(*_):
        raise AssertionError("a picture is encoded")

    monkeypatch.setattr(stages, "make_encode", lambda *_: fail)
    monkeypatch.setattr(runs.Run, "fit", lambda *_, **__: Result(None, 7, None))
    given(finetune, steps=7)
    assert "finished: 7 steps" in capsys.readouterr().out


def actions(folder):
    episodes = runs.Run(("pushcube",), SMALL, (folder / "data",), folder / "run").episodes()
    return [episodes.numbers(i)["action"] for i in range(len(episodes))]


def test_mistakes_are_one_sentence(given, tmp_path):
    with pytest.raises(UserError, match="holds no trained frame VAE: give --vae or --init, or train one"):
        given(encode)
    with pytest.raises(UserError, match="only a policy has something to encode ahead"):
        given(encode, stage="vae")
    with pytest.raises(UserError, match="nowhere holds no checkpoint"):
        given(encode, vae="nowhere")
    assert not (tmp_path / "run").exists()
