"""Clocks: seconds until a device is done, of several things in turn, so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# One thread's work is also told by the processor's time, which other programs on the machine do not lengthen.
CLOCK = time.perf_counter

# A thing is run so often in a turn that the quickest takes this many seconds: shorter ones drown in the clock.
TURN = 0.05
# What is timed takes about so long in all, unless the number of steps is given.
ENOUGH = 4.0
FEWEST, MOST = 5, 300


def once(run: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    began = CLOCK()
    jax.block_until_ready(run())
    return CLOCK() - began


def many(run: Callable[[], Any], steps: int | None = None) -> np.ndarray:
    """Seconds of each of `steps` calls after two that are not counted: [steps]; by default as many as are enough."""
    once(run)
    first = once(run)
    count = steps or int(np.clip(ENOUGH / first, FEWEST, MOST))
    return np.array([once(run) for _ in range(count)])


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int = 9) -> dict[str, np.ndarray]:
    """Seconds a call of each of several things, round by round: name -> [rounds]."""
    for run in runs.values():
        once(run)
    quickest = min(once(run) for run in runs.values())
    calls = max(1, round(TURN / quickest))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = CLOCK()
            for _ in range(calls):
                jax.block_until_ready(run())
            seconds[name].append((CLOCK() - began) / calls)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(slower: np.ndarray, faster: np.ndarray) -> dict[str, float]:
    """How many times as long one thing takes as another, from rounds in turn: median, least and greatest."""
    shares = slower / faster
    return {"median": float(np.median(shares)), "least": float(shares.min()), "greatest": float(shares.max())}


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Milliseconds: median, 99th percentile, and how many there were."""
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p99_ms": 1e3 * float(np.percentile(seconds, 99)),
        "calls": len(seconds),
    }
