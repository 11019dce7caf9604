"""Closed-loop rollouts: one policy, one or more simulated robots.

A robot is anything with `reset` and `step_chunk`, a policy anything with `init` and `act`. A rollout depends
on its seeds only, not on the number of robots or on the order of work.
"""

import queue
import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Protocol

import jax
import numpy as np

from par_jax.evaluation import Trial
from par_jax.video import Film


class Outcome(Protocol):
    """What came of executing a chunk, as `par_jax.sim.workers.Chunk`.

    Attributes:
      pictures: uint8 [n, H, W, 3]: after every executed step, or n = 1 and after the last one only.
      steps: control steps executed; fewer than asked for where the task was done earlier.
      success: whether the task is done.
      reward: summed over the steps.
    """

    pictures: np.ndarray
    steps: int
    success: bool
    reward: float


class Robot(Protocol):
    """One simulated robot, as `par_jax.sim.workers.EnvServer`."""

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode; returns its first picture, uint8 [H, W, 3]."""

    def step_chunk(self, actions: np.ndarray, render: str = "last") -> Outcome:
        """Executes actions [n, A] until the task is done; pictures of the `last` step or of `all`."""

    def segments(self) -> np.ndarray:
        """What the last picture shows: uint8 [H, W], k + 1 for the k-th of `par_jax.tasks.SEGMENTS`, 0 for the rest."""


class Actor(Protocol):
    """A policy, as `par_jax.policy.Policy`."""

    def init(self, key: jax.Array, instruction: str) -> Any:
        """The carry at the start of an episode."""

    def view(self, picture: np.ndarray) -> np.ndarray:
        """What of a picture the policy sees, and predicts."""

    def act(self, carry: Any, picture: np.ndarray, predict_frame: bool = False) -> tuple[Any, Any, Any]:
        """(carry, actions f32 [L, A], info with `predicted`: uint8 [h, w, 3] or None)."""


class Stopped(Exception):
    """The rollout was given up because the command is ending."""


class Runner:
    """Makes rollouts, one after the other on each robot, with one policy for all.

    Args:
      policy: the policy; it is called by one robot at a time, so that its latency is its own.
      instruction: what the policy is told.
      max_steps: control steps until a rollout counts as failed.
    """

    def __init__(self, policy: Actor, instruction: str, max_steps: int):
        self.policy = policy
        self.instruction = instruction
        self.max_steps = max_steps
        self._turn = threading.Lock()
        self._stop = threading.Event()

    def warm_up(self, picture: np.ndarray, predict_frame: bool) -> None:
        """Compiles what `rollout` will call, so that no rollout's latency contains it."""
        for predicts in (False, True) if predict_frame else (False,):
            carry = self.policy.init(jax.random.key(0), self.instruction)
            # The second call starts from a carry that the policy itself returned.
            for _ in range(2):
                carry, actions, _ = self.policy.act(carry, picture, predict_frame=predicts)
            jax.block_until_ready(actions)

    def rollout(self, robot: Robot, trial: Trial, film: Film | None = None) -> dict[str, Any]:
        """One rollout: picture -> chunk of actions -> picture, until success or `max_steps`.

        Args:
          robot: executes it.
          trial: its seeds.
          film: where to record it, with the frames that the policy predicts, if at all.

        Returns:
          JSON-able: seed, policy_seed, success, steps, return, latencies_ms (of every call), latency_ms
          (their median), filmed.

        Raises:
          Stopped: `stop` was called meanwhile.
        """
        key = jax.random.fold_in(jax.random.key(trial.policy_seed), trial.seed)
        picture = robot.reset(trial.seed)
        carry = self.policy.init(key, self.instruction)
        steps, reward, success, latencies = 0, 0.0, False, []
        executed = [picture]
        while steps < self.max_steps and not success:
            if self._stop.is_set():
                raise Stopped
            with self._turn:
                start = time.perf_counter()
                carry, actions, info = self.policy.act(carry, picture, predict_frame=film is not None)
                jax.block_until_ready(actions)
                latencies.append(round(1000 * (time.perf_counter() - start), 3))
            chunk = np.asarray(actions)[: self.max_steps - steps]
            if film is not None:
                film.look(steps, np.asarray(actions), self.policy.view(robot.segments()[..., None])[..., 0])
                if info.predicted is not None:
                    film.predict(np.asarray(info.predicted), made=steps, due=steps + len(actions))
            outcome = robot.step_chunk(chunk, render="last" if film is None else "all")
            steps, reward, success = steps + outcome.steps, reward + outcome.reward, outcome.success
            picture = outcome.pictures[-1]
            executed.extend(outcome.pictures)
        if film is not None:
            film.executed.extend(self.policy.view(shown) for shown in executed)
        return {
            "seed": trial.seed,
            "policy_seed": trial.policy_seed,
            "success": bool(success),
            "steps": steps,
            "return": round(reward, 6),
            "latency_ms": statistics.median(latencies),
            "latencies_ms": latencies,
            "filmed": film is not None,
        }

    def stop(self) -> None:
        """Makes the rollouts under way raise `Stopped` at their next chunk."""
        self._stop.set()

    def run(
        self,
        robots: Sequence[Robot],
        trials: Sequence[Trial],
        make: Callable[[Robot, Trial], dict[str, Any]],
    ) -> Generator[dict[str, Any]]:
        """Yields what `make` returns for each trial, in the order in which they finish.

        Args:
          robots: each is used by one thread at a time.
          trials: handed to whichever robot is free.
          make: calls `rollout`.

        Raises:
          Whatever `make` raises; the other rollouts are stopped then.
        """
        self._stop.clear()
        free: queue.SimpleQueue[Robot] = queue.SimpleQueue()
        for robot in robots:
            free.put(robot)

        def job(trial: Trial) -> dict[str, Any]:
            robot = free.get()
            try:
                return make(robot, trial)
            finally:
                free.put(robot)

        with ThreadPoolExecutor(len(robots)) as threads:
            pending = {threads.submit(job, trial) for trial in trials}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                self.stop()
                for future in pending:
                    future.cancel()
