import json

from par_jax.metrics import Metrics, describe, rewind


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rewind_drops_later_lines_and_a_cut_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 4, "split": "validation"}\n{"step": 6}\n{"step": 8, "lo')
    rewind(path, 4)
    assert [line["step"] for line in read(path)] == [2, 4, 4]
    rewind(tmp_path / "missing", 4)


def test_lines_reach_the_file_the_console_and_tensorboard(tmp_path, capsys):
    with Metrics(tmp_path, 0, 100) as metrics:
        for _ in range(3):
            metrics.advance(0.5, 0.25)
        metrics.write(3, {"loss": 0.5})
        metrics.write(3, {"chunk_0": 0.25}, "validation")
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 3, "split": "train", "loss": 0.5, "steps_per_second": 4.0},
        {"step": 3, "split": "validation", "chunk_0": 0.25},
    ]
    out = capsys.readouterr().out
    assert "step      3/100  loss 0.5  4.00 steps/s  0:24 left" in out
    assert "validation  chunk_0 0.25" in out
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert all(tag in events.read_bytes() for tag in (b"train/loss", b"validation/chunk_0", b"steps_per_second"))


def test_describe():
    assert describe({"loss": 0.123456, "rate": 8e-4}) == "loss 0.1235  rate 0.0008"
