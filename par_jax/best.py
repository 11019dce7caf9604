"""The checkpoint that a policy is judged by: of those that validation has seen, the one that looks best without a past.

It stands in a run's folder beside the last ones, from which training goes on.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from par_jax import processes
from par_jax.checkpoint import Checkpoints
from par_jax.trees import Tree
from par_jax.workdir import BEST, write_json

SCORE = "score.json"
# Mean absolute errors of sampled actions, of which the sum decides. The error with the true history given does not
# count: it is least where a policy copies what the expert has just done.
JUDGES = ("chunk_0", "history_masked")


def keep_best(workdir: Path, step: int, ema: Tree, seen: Mapping[str, float]) -> bool:
    """Keeps averaged parameters if none before them were as good; all processes have to call it.

    Args:
      workdir: the run's folder.
      step: of training.
      ema: the parameters.
      seen: what validation found, with `JUDGES` among it.

    Returns:
      Whether they are; never where there was nothing to judge.
    """
    folder, score = workdir / BEST, sum(seen[name] for name in JUDGES)
    path = folder / SCORE
    before = processes.in_turn(lambda: json.loads(path.read_text()) if path.exists() else None)
    if not math.isfinite(score) or (before is not None and score >= before["score"]):
        return False
    # A stop between the parameters and their score leaves the parameters, and training comes by here again.
    there = processes.in_turn((folder / "checkpoints" / str(step)).exists)
    if not there:
        checkpoints = Checkpoints(folder, keep=2)
        checkpoints.save(step, {"ema": ema}, {})
        checkpoints.wait()
        checkpoints.close()
    if processes.leads():
        write_json(path, {"step": step, "score": score, **{name: seen[name] for name in JUDGES}})
    return True
