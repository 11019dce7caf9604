import dataclasses
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.evaluation import Trial
from par_jax.rollout import Runner
from par_jax.video import Film

_L, _A = 8, 2


class Outcome(NamedTuple):
    pictures: np.ndarray
    steps: int
    success: bool
    reward: float


class Info(NamedTuple):
    predicted: np.ndarray | None


class NoisyPolicy:
    """Actions depend on the key, on the history and on the picture."""

    def __init__(self) -> None:
        self.inside = 0

    def init(self, key: jax.Array, instruction: str) -> Any:
        assert instruction == "go"
        return key, jnp.zeros((), jnp.float32)

    def view(self, picture: np.ndarray) -> np.ndarray:
        return picture[2:6, 2:6]

    def act(self, carry: Any, picture: np.ndarray, predict_frame: bool = False) -> tuple[Any, jax.Array, Info]:
        self.inside += 1
        assert self.inside == 1, "two robots at once"
        time.sleep(0.001)
        key, past = carry
        key, now = jax.random.split(key)
        seen = jnp.float32(picture.astype(np.float32).mean())
        actions = jax.random.normal(now, (_L, _A), jnp.float32) + 0.01 * seen + past
        self.inside -= 1
        predicted = np.full((4, 4, 3), 7, np.uint8) if predict_frame else None
        return (key, actions.mean()), actions, Info(predicted)


class Walk:
    """A position that the actions push about; done when it passes `goal`."""

    def __init__(self, goal: float = 1e9, delay: float = 0.0):
        self.goal, self.delay = goal, delay
        self.executed: list[np.ndarray] = []

    def _picture(self) -> np.ndarray:
        return np.full((8, 8, 3), int(abs(self.position)) % 256, np.uint8)

    def reset(self, seed: int) -> np.ndarray:
        self.position = float(seed % 50)
        self.executed = []
        return self._picture()

    def segments(self) -> np.ndarray:
        return np.arange(64, dtype=np.uint8).reshape(8, 8)

    def step_chunk(self, actions: np.ndarray, render: str = "last") -> Outcome:
        time.sleep(self.delay)
        pictures = []
        for action in actions:
            self.executed.append(action)
            self.position += float(np.abs(action).sum())
            pictures.append(self._picture())
            if self.position > self.goal:
                break
        steps = len(pictures)
        return Outcome(
            np.stack(pictures if render == "all" else pictures[-1:]),
            steps,
            self.position > self.goal,
            0.5 * steps,
        )


def _core(row: dict) -> dict:
    return {key: row[key] for key in ("seed", "policy_seed", "success", "steps", "return")}


def test_a_rollout_ends_at_the_limit_in_the_middle_of_a_chunk():
    robot = Walk()
    row = Runner(NoisyPolicy(), "go", max_steps=20).rollout(robot, Trial(0, 1))
    assert (row["success"], row["steps"], row["return"]) == (False, 20, 10.0)
    assert len(robot.executed) == 20
    assert len(row["latencies_ms"]) == 3
    assert min(row["latencies_ms"]) >= 1.0


def test_a_rollout_ends_at_success():
    robot = Walk(goal=55.0)
    row = Runner(NoisyPolicy(), "go", max_steps=400).rollout(robot, Trial(0, 49))
    assert row["success"]
    assert row["steps"] == len(robot.executed) < 40


def test_rollouts_do_not_depend_on_the_number_of_robots_nor_on_filming():
    trials = [Trial(p, s) for p in range(2) for s in range(5)]
    runner = Runner(NoisyPolicy(), "go", max_steps=40)

    def run(robots: list[Walk], film: bool) -> list[dict]:
        def make(robot: Walk, trial: Trial) -> dict:
            return _core(runner.rollout(robot, trial, Film("t", []) if film else None))

        rows = runner.run(robots, trials, make)
        return sorted(rows, key=lambda row: (row["policy_seed"], row["seed"]))

    one = run([Walk(goal=80.0)], film=False)
    assert one == run([Walk(80.0, 0.004), Walk(80.0), Walk(80.0, 0.001)], film=True)
    assert len({tuple(row.items()) for row in one}) == len(trials)
    # Another policy seed is another rollout from the same state.
    assert any(a["steps"] != b["steps"] for a, b in zip(one[:5], one[5:], strict=True))


def test_the_film_shows_every_step_cropped_like_the_predictions():
    film = Film("t", [])
    row = Runner(NoisyPolicy(), "go", max_steps=20).rollout(Walk(), Trial(0, 1), film)
    assert len(film.executed) == row["steps"] + 1
    assert {picture.shape for picture in film.executed} == {(4, 4, 3)}
    assert (film.made, film.due) == ([0, 8, 16], [8, 16, 24])
    assert film.looks == [0, 8, 16] and {actions.shape for actions in film.actions} == {(_L, _A)}
    for segments in film.segments:
        np.testing.assert_array_equal(segments, np.arange(64).reshape(8, 8)[2:6, 2:6])
    assert row["filmed"]


def test_an_error_in_one_rollout_stops_the_others():
    runner = Runner(NoisyPolicy(), "go", max_steps=10**6)
    begun = threading.Event()

    def make(robot: Walk, trial: Trial) -> dict:
        if trial.seed == 1:
            begun.wait()
            raise RuntimeError("the simulator died")
        begun.set()
        return runner.rollout(robot, trial)

    with pytest.raises(RuntimeError, match="the simulator died"):
        list(runner.run([Walk(), Walk()], [Trial(0, s) for s in range(4)], make))


def test_warming_up_calls_the_policy_as_the_rollouts_will():
    calls = []

    class Recorder(NoisyPolicy):
        def act(self, carry: Any, picture: np.ndarray, predict_frame: bool = False) -> tuple[Any, jax.Array, Info]:
            calls.append(predict_frame)
            return super().act(carry, picture, predict_frame)

    runner = Runner(Recorder(), "go", max_steps=8)
    runner.warm_up(np.zeros((8, 8, 3), np.uint8), predict_frame=False)
    assert calls == [False, False]
    runner.warm_up(np.zeros((8, 8, 3), np.uint8), predict_frame=True)
    assert calls[2:] == [False, False, True, True]


def test_trials_are_ordered_by_policy_seed_then_state():
    assert dataclasses.astuple(Trial(policy_seed=1, seed=2)) == (1, 2)
    assert Trial(0, 9) < Trial(1, 0)
