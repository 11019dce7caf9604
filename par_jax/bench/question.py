"""What a benchmark is asked, and how its answers read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from par_jax.bench import timing
from par_jax.bench.subject import PARTS
from par_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
      config: of the model, its `train` as it shall be timed.
      checkpoint: a run's folder, or a released one, whose weights and configuration are taken instead, or None.
      batch: robots.
      dtype: of acting.
      peer: whether PyTorch is timed beside it.
      parts: of `PARTS`; all of them make the whole step.
      frames, train: whether these are timed.
      rounding: whether actions in `dtype` are held against those in float32.
      steps: timed calls, or None for as many as are enough.
      rounds: of what is timed in turn.
    """

    config: Config
    checkpoint: Path | None = None
    batch: int = 1
    dtype: str = "float32"
    peer: bool = False
    parts: tuple[str, ...] = PARTS
    frames: bool = False
    train: bool = False
    rounding: bool = False
    steps: int | None = None
    rounds: int = 9


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def indented(text: str) -> None:
    """A line under another."""
    say(f"  {text}")


def compared(name: str, runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """PyTorch's time over ours, which is called "jax", in turn: mode -> ratio. Says it."""
    seconds = timing.in_turn(runs, rounds)
    found = {mode: timing.ratio(seconds[mode], seconds["jax"]) for mode in runs if mode != "jax"}
    for mode, ratio in found.items():
        indented(f"{name}: PyTorch ({mode}) takes {times(ratio)} as long")
    return found


def times(ratio: dict[str, float]) -> str:
    """A ratio for people."""
    return f"{ratio['median']:.2f} times ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"
