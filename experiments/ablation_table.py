"""The numbers of trained and rolled out ablations, as one table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves import read
from par_jax.costs import costs
from par_jax.evaluation import newcombe, sentence, wilson
from par_jax.workdir import config_of, read_meta

ERRORS = ("chunk_0", "history_masked", "teacher_forced")
# What the others are compared with.
FULL = "full"
_HEAD = ("variant", "parameters", "steps", "minutes", *ERRORS, "success", "difference to full")


def result(run: Path, rollouts: Path) -> dict[str, Any]:
    """One trained and rolled out run's numbers, JSON-able.

    Args:
      run: the policy's folder.
      rollouts: that of its rollouts.
    """
    config = config_of(read_meta(run), run)
    counted, lines = costs(config), read(run / "metrics.jsonl")
    seen = [line for line in lines if line["split"] == "validation"][-1]
    summary = json.loads((rollouts / "summary.json").read_text())
    return {
        "parameters": sum(counted.parameters.values()) + counted.beside.get("LoRA adapters", 0),
        "steps": config.train.steps,
        "minutes": minutes(lines),
        **{name: seen[name] for name in ERRORS},
        "successes": summary["successes"],
        "episodes": summary["episodes"],
    }


def minutes(lines: Sequence[Mapping[str, Any]]) -> float:
    """What the training steps of a `metrics.jsonl` took, without compilation and validation."""
    seconds, last = 0.0, 0
    for line in lines:
        if line["split"] == "train":
            if "steps_per_second" in line:
                seconds += (line["step"] - last) / line["steps_per_second"]
            last = line["step"]
    return seconds / 60


def rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row a variant: the rollouts of all its seeds together, and the means of its other numbers.

    Args:
      results: variant -> what `result` gives, one a seed; none is empty.
    """
    made = []
    for name, runs in results.items():
        wins, trials = (sum(run[key] for run in runs) for key in ("successes", "episodes"))
        row: dict[str, Any] = {"variant": name, "seeds": len(runs)}
        row |= {key: runs[0][key] for key in ("parameters", "steps")}
        row |= {key: float(np.mean([run[key] for run in runs])) for key in ("minutes", *ERRORS)}
        row |= {"successes": wins, "episodes": trials, "success_rate": wins / trials}
        made.append(row | {"wilson_95": list(wilson(wins, trials))})
    full = next((row for row in made if row["variant"] == FULL), None)
    for row in made:
        if full is not None and row is not full:
            pairs = [(each["successes"], each["episodes"]) for each in (row, full)]
            row["difference"] = row["success_rate"] - full["success_rate"]
            row["difference_95"] = list(newcombe(*pairs))
    return made


def markdown(table: Sequence[Mapping[str, Any]], title: str) -> str:
    """The rows for people."""
    lines = [_line(_HEAD), _line(["---", *["---:"] * 6, "---", "---"])]
    for row in table:
        cells = [row["variant"], f"{row['parameters'] / 1e6:.2f} M", str(row["steps"]), f"{row['minutes']:.1f}"]
        cells += [f"{row[name]:.3f}" for name in ERRORS]
        cells += [sentence(row).removeprefix("success "), _difference(row)]
        lines.append(_line(cells))
    seeds = max((row["seeds"] for row in table), default=1)
    notes = [
        "`chunk_0`, `history_masked`, `teacher_forced`: mean absolute errors of sampled actions on held-out episodes,",
        "in units of half an action's range. Success with Wilson's 95% interval; differences in percentage points,",
        "with Newcombe's, as if the runs' initial states were not the same. Minutes are those of training steps alone.",
    ]
    if seeds > 1:
        notes.append(f"Rollouts of up to {seeds} seeds are counted together; the other numbers are their means.")
    return "\n".join([title, "", *lines, "", *notes]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _difference(row: Mapping[str, Any]) -> str:
    if "difference" not in row:
        return ""
    low, high = row["difference_95"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
