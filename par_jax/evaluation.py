"""Evaluation protocols and the statistics of a set of rollouts. Knows no simulator and no model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from par_jax.errors import UserError


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One rollout to be made.

    Attributes:
      policy_seed: of the policy's own draws.
      seed: of the simulator's initial state.
    """

    policy_seed: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How rollouts are started and stopped.

    Attributes:
      name: as the flag spells it.
      first_seed: initial state i has the seed `first_seed + i`.
      states: different initial states, None for as many as there are rollouts.
      policy_seeds: rollouts from each initial state.
      episodes: rollouts that the protocol asks for at least; fewer are a quick look.
      control_mode: the only one allowed, None for any.
      max_steps: control steps until a rollout counts as failed, None for the task's own limit.
    """

    name: str
    first_seed: int
    states: int | None
    policy_seeds: int
    episodes: int
    control_mode: str | None
    max_steps: int | None

    def trials(self, episodes: int, seed: int = 0) -> list[Trial]:
        """The first `episodes` rollouts, in order: all initial states, then again with the next policy seed.

        Args:
          episodes: number of rollouts.
          seed: the first policy seed; it also chooses the initial states that a protocol leaves open.

        Raises:
          UserError: more rollouts than the protocol has, or none.
        """
        if seed < 0:
            raise UserError(f"--seed={seed} is negative: give 0 or more")
        most = None if self.states is None else self.states * self.policy_seeds
        if episodes < 1 or (most is not None and episodes > most):
            allowed = "1 or more" if most is None else f"1 to {most}"
            raise UserError(f"--episodes={episodes} does not fit --protocol={self.name}: give {allowed}")
        if self.states is None:
            first = self.first_seed + seed * _SEEDS_APART
            return [Trial(seed, first + i) for i in range(episodes)]
        return [Trial(seed + i // self.states, self.first_seed + i % self.states) for i in range(episodes)]


# Sets of initial states of different --seed do not meet below this many rollouts.
_SEEDS_APART = 1_000_000

PROTOCOLS: dict[str, Protocol] = {
    # The table of the PAR paper (arXiv 2508.09822), after RDT's: 125 rollouts on 25 states.
    "rdt": Protocol(
        name="rdt",
        first_seed=20241201,
        states=25,
        policy_seeds=5,
        episodes=125,
        control_mode="pd_joint_pos",
        max_steps=400,
    ),
    # ManiSkill's own `success_once`; the states are far from the seeds that demonstrations are made of.
    "maniskill": Protocol(
        name="maniskill",
        first_seed=100_000_000,
        states=None,
        policy_seeds=1,
        episodes=250,
        control_mode=None,
        max_steps=None,
    ),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
      UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927), by default at 95%.

    Unlike the normal approximation it stays within 0..1 and is honest at 0% and 100%.

    Args:
      successes: 0 to `trials`.
      trials: at least 1.
      z: quantile of the normal distribution, 1.96 for 95%.

    Returns:
      Lower and upper end.

    Raises:
      ValueError: the counts are impossible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    p = successes / trials
    shrink = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / shrink
    # At the ends the formula is 0 or 1 exactly, but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def newcombe(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """95% interval of a difference of two independent proportions, first minus second, from their Wilson intervals.

    Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10: like Wilson's, honest at 0% and 100%.

    Args:
      first, second: successes and trials, as `wilson` takes them.

    Returns:
      Lower and upper end.
    """
    p, q = (successes / trials for successes, trials in (first, second))
    (p_low, p_high), (q_low, q_high) = wilson(*first), wilson(*second)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of finished rollouts.

    Args:
      rows: one mapping a rollout with `seed`, `policy_seed`, `success`, `steps`, `return`, `latencies_ms`
        (milliseconds of every call of the policy) and `filmed` (whether those calls also predicted frames).

    Returns:
      JSON-able: `success_rate`, `wilson_95`, `episodes`, `successes`, `states`, `seeds`, `policy_seeds`,
      `mean_steps`, `mean_steps_success` (None without a success), `mean_return`, `latency_ms`.

    Raises:
      ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rollouts to summarize")
    wins = [row for row in rows if row["success"]]
    # Acting needs no predicted frame: calls that made one count only where there are no others.
    timed = [row for row in rows if not row["filmed"]] or rows
    latencies = np.concatenate([np.asarray(row["latencies_ms"], np.float64) for row in timed])
    seeds = sorted({row["seed"] for row in rows})
    return {
        "success_rate": len(wins) / len(rows),
        "wilson_95": list(wilson(len(wins), len(rows))),
        "episodes": len(rows),
        "successes": len(wins),
        "states": len(seeds),
        "seeds": seeds,
        "policy_seeds": sorted({row["policy_seed"] for row in rows}),
        "mean_steps": float(np.mean([row["steps"] for row in rows])),
        "mean_steps_success": float(np.mean([row["steps"] for row in wins])) if wins else None,
        "mean_return": float(np.mean([row["return"] for row in rows])),
        "latency_ms": {
            "median": float(np.median(latencies)),
            "p99": float(np.percentile(latencies, 99)),
            "calls": len(latencies),
            "with_predicted_frames": bool(timed[0]["filmed"]),
        },
    }


def sentence(summary: Mapping[str, Any]) -> str:
    """The result in one line, as the command prints it."""
    low, high = summary["wilson_95"]
    return (
        f"success {summary['successes']} of {summary['episodes']}: {100 * summary['success_rate']:.1f}% "
        f"(95% interval {100 * low:.1f} to {100 * high:.1f}%)"
    )
