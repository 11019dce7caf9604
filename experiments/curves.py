"""Draws a run's learning curves, and says where its results are.

python -m experiments.curves --workdir=runs/pushcube --rollout=runs/pushcube/rdt
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import flags

from experiments import app
from par_jax.errors import UserError
from par_jax.evaluation import sentence

FLAGS = flags.FLAGS
_NOT_CURVES = ("step", "split", "learning_rate", "steps_per_second", "gradient_norm")
_COLUMNS = 4


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "A run's folder, as experiments.finetune writes it.")
    flags.DEFINE_string("out", None, "The picture to write; <workdir>/curves.png by default.")
    flags.DEFINE_string("rollout", None, "A folder of experiments.rollout, to say what came out there.")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`.

    Raises:
      UserError: it is missing, empty or damaged.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: give the --workdir of a run that has begun")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not rows:
        raise UserError(f"{path} is empty: let the run reach its first line of metrics")
    return rows


def series(rows: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> split -> float [n, 2] of (step, value), in the order in which the metrics first appear."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in _NOT_CURVES:
                points = curves.setdefault(name, {}).setdefault(row["split"], [])
                points.append((row["step"], value))
    return {name: {split: np.array(p) for split, p in splits.items()} for name, splits in curves.items()}


def draw(curves: dict[str, dict[str, np.ndarray]], title: str, path: Path) -> None:
    """Writes a PNG with one panel a metric, training and validation in one panel.

    Args:
      curves: as `series` gives them, at least one.
      title: above all.
      path: of the picture; its folder exists.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (name, splits) in zip(axes.flat, curves.items(), strict=False):
        for split, points in splits.items():
            axis.plot(points[:, 0], points[:, 1], ".-", markersize=3, linewidth=1, label=split)
        if all((points[:, 1] > 0).all() for points in splits.values()):
            axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Draws, and says what a folder of rollouts holds."""
    if FLAGS.workdir is None:
        raise UserError("say which run to draw: --workdir=runs/<name>")
    workdir = Path(FLAGS.workdir)
    out = Path(FLAGS.out or workdir / "curves.png")
    draw(series(read(workdir / "metrics.jsonl")), str(workdir), out)
    if FLAGS.rollout is not None:
        folder = Path(FLAGS.rollout)
        path = folder / "summary.json"
        if not path.exists():
            raise UserError(f"{path} is missing: let experiments.rollout finish first")
        print(f"result: {sentence(json.loads(path.read_text()))}, see {path}")
        for video in sorted((folder / "videos").glob("*.mp4"))[:1]:
            print(f"video: {video}")
    print(f"curves: {out}")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
