"""A trained run and its rollouts, as the other commands have left them on disk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from par_jax import recording
from par_jax.errors import UserError
from par_jax.recording import Recording
from par_jax.workdir import read_meta


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """A folder of experiments.rollout.

    Attributes:
      folder: the folder.
      key: begins the names of its pictures.
      summary: its `summary.json`.
      rows: its `rollouts.jsonl`.
      films: what was recorded of the filmed ones.
    """

    folder: Path
    key: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    films: list[Recording]


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder of experiments.finetune.

    Attributes:
      folder: the folder.
      key: begins the names of its pictures.
      meta: its `config.json`.
      rollouts: of its sub-folders that hold finished ones.
    """

    folder: Path
    key: str
    meta: dict[str, Any]
    rollouts: list[Rollouts]


def read(folder: Path, number: int) -> Run:
    """Reads a run.

    Args:
      folder: the run's.
      number: of the run on the page.

    Raises:
      UserError: it is no run's folder, or a file in it is damaged.
    """
    meta = read_meta(folder)
    key = f"run{number}"
    found = [path.parent for path in sorted(folder.glob("*/summary.json"))]
    return Run(folder, key, meta, [_rollouts(path, f"{key}-{path.name}") for path in found])


def _rollouts(folder: Path, key: str) -> Rollouts:
    try:
        summary = json.loads((folder / "summary.json").read_text())
        rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no whole rollouts ({error}): let experiments.rollout finish") from error
    films = [recording.read(path) for path in sorted((folder / "videos").glob("*.npz"))]
    return Rollouts(folder, key, summary, rows, films)
