import json
from types import SimpleNamespace

import pytest

from experiments import describe
from par_jax.errors import UserError
from tests.flags import MODEL_FLAGS


def _run(monkeypatch, **values):
    flags = MODEL_FLAGS | {"batch": 1, "dtype": "bfloat16", "json": None}
    monkeypatch.setattr(describe, "FLAGS", SimpleNamespace(**flags | values))
    describe.main()


def test_a_preset_is_described(monkeypatch, capsys, tmp_path):
    _run(monkeypatch, json=str(tmp_path / "tiny.json"), batch=2)
    said = capsys.readouterr().out
    assert "8 text + 3 x (36 frame + 8 action) = 140" in said
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert f"{found['parameters']['Action De-Tokenizer'] / 1e6:.2f} M" in said
    assert f"{found['step_flops']['transformer'] / 1e9:.1f} GFLOP" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"preset": "physgen"}, "LoRA adapters"),
        ({"preset": "physgen", "lora_rank": 0}, "action de-tokenizer"),
        ({"variant": "no_transformer"}, "preset tiny, variant no_transformer"),
    ],
)
def test_a_changed_model_is_described(monkeypatch, capsys, flags, said):
    _run(monkeypatch, **flags)
    assert said.lower() in capsys.readouterr().out.lower()


def test_an_unknown_preset_is_told(monkeypatch):
    with pytest.raises(UserError, match="unknown preset 'huge': choose one of tiny, small, par"):
        _run(monkeypatch, preset="huge")
