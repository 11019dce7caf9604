"""What of a filmed rollout is kept for figures: the pictures of the moments that matter, in one small file.

Axes: P predictions, Q looks of the policy, S steps kept; h, w pixels; L actions a chunk, A action numbers.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.video import Film

_LAST = 8


@dataclasses.dataclass(frozen=True)
class Recording:
    """A rollout at the steps at which the policy looked or expected something, and its last ones.

    Attributes:
      seed, policy_seed: int32 [], as in `rollouts.jsonl`.
      success: bool [].
      steps: int32 [S], rising; the last one is the rollout's end.
      executed: uint8 [S, h, w, 3], the pictures after so many control steps, as the policy sees them.
      predicted: uint8 [P, h, w, 3].
      made, due: int32 [P], when each was predicted, and for when.
      looks: int32 [Q].
      actions: float32 [Q, L, A], decided there, in the controller's units.
      segments: uint8 [Q, h, w], seen there: k + 1 for the k-th of `par_jax.tasks.SEGMENTS`, 0 for the rest.
    """

    seed: np.ndarray
    policy_seed: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    executed: np.ndarray
    predicted: np.ndarray
    made: np.ndarray
    due: np.ndarray
    looks: np.ndarray
    actions: np.ndarray
    segments: np.ndarray

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Executed pictures [..., h, w, 3] of steps [...] that are kept."""
        return self.executed[np.searchsorted(self.steps, steps)]

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions whose moment came, uint8 [p, h, w, 3] each: predicted, executed, executed when it was made."""
        came = self.due <= self.steps[-1]
        return self.predicted[came], self.at(self.due[came]), self.at(self.made[came])


def write(film: Film, path: Path, trial: Trial, success: bool) -> None:
    """Writes what a `Recording` holds as a compressed .npz; a half-written file never bears the name `path`."""
    last = len(film.executed) - 1
    due = [step for step in film.due if step <= last]
    steps = sorted({*film.looks, *due, *range(max(0, last - _LAST), last + 1)})
    none = np.zeros((0, *film.executed[0].shape), np.uint8)
    arrays = {
        "seed": np.int32(trial.seed),
        "policy_seed": np.int32(trial.policy_seed),
        "success": np.bool_(success),
        "steps": np.array(steps, np.int32),
        "executed": np.stack([film.executed[step] for step in steps]),
        "predicted": np.stack(film.predicted) if film.predicted else none,
        "made": np.array(film.made, np.int32),
        "due": np.array(film.due, np.int32),
        "looks": np.array(film.looks, np.int32),
        "actions": np.stack(film.actions).astype(np.float32),
        "segments": np.stack(film.segments),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}")
    with half.open("wb") as file:
        np.savez_compressed(file, **arrays)
    half.replace(path)


def read(path: Path) -> Recording:
    """What `write` has written.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with np.load(path) as arrays:
            return Recording(**arrays)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: make the rollouts again with --overwrite") from error
