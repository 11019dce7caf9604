import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import curves
from par_jax.errors import UserError

_ROWS = [
    {"step": 20, "split": "train", "loss": 2.0, "frame_loss": 1.0, "learning_rate": 0.1},
    {"step": 20, "split": "validation", "loss": 3.0, "chunk0_error": -0.5},
    {"step": 40, "split": "train", "loss": 1.0, "frame_loss": 0.5, "steps_per_second": 2.0},
]


def _flags(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    defaults = {"workdir": None, "out": None, "rollout": None}
    monkeypatch.setattr(curves, "FLAGS", SimpleNamespace(**defaults | {k: str(v) for k, v in values.items()}))


def test_series_are_by_metric_and_split():
    found = curves.series(_ROWS)
    assert list(found) == ["loss", "frame_loss", "chunk0_error"]
    assert np.array_equal(found["loss"]["train"], [[20, 2.0], [40, 1.0]])
    assert np.array_equal(found["loss"]["validation"], [[20, 3.0]])


def test_a_run_is_drawn_and_its_result_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    out = tmp_path / "rdt"
    (out / "videos").mkdir(parents=True)
    (out / "videos" / "1-0.mp4").write_bytes(b"")
    summary = {"successes": 24, "episodes": 25, "success_rate": 0.96, "wilson_95": [0.805, 0.993]}
    (out / "summary.json").write_text(json.dumps(summary))
    _flags(monkeypatch, workdir=tmp_path, rollout=out)
    curves.main()
    said = capsys.readouterr().out
    assert "success 24 of 25: 96.0%" in said
    assert f"video: {out / 'videos' / '1-0.mp4'}" in said
    assert f"curves: {tmp_path / 'curves.png'}" in said
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert picture.shape[0] > 200
    assert (picture < 128).sum() > 1000


@pytest.mark.parametrize(("text", "message"), [(None, "is missing"), ("", "is empty"), ("{", "is damaged")])
def test_a_run_without_curves_is_refused(tmp_path, monkeypatch, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    _flags(monkeypatch, workdir=tmp_path)
    with pytest.raises(UserError, match=message):
        curves.main()


def test_unfinished_rollouts_are_refused(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(_ROWS[0]) + "\n")
    _flags(monkeypatch, workdir=tmp_path, rollout=tmp_path / "none")
    with pytest.raises(UserError, match="let experiments.rollout finish first"):
        curves.main()
