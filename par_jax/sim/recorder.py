"""From a seed to one recorded demonstration, and from a block of seeds to one shard on disk.

How noise is used (DART, Laskey et al. 2017): the expert's clean move is the recorded `action`; what is executed is that
move plus noise, and it is recorded too, as `executed`. A policy so learns clean answers in states that only mistakes
lead to, and replaying `executed` reproduces the episode exactly.

Axes: T actions, T+1 pictures, A action numbers, J joints.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from par_jax.sim.expert import CLOSED, EXPERTS, OPEN, SPEED, Move, limited
from par_jax.sim.filming import Filming, Take
from par_jax.sim.hand import make_hand
from par_jax.sim.motion import NEAR
from par_jax.tasks import get_task

TAIL = 8
"""Actions recorded after the first success: one chunk of holding (or of pushing further in), without noise."""

LOWEST = 0.01
"""Noise never asks for a tool centre point below this height, metres: it would press on the table."""


class Noise:
    """Mistakes for the expert to recover from: jitter on every move, and in half the episodes bursts of drift."""

    def __init__(self, seed: int):
        """Args: seed: of the episode; the noise depends on nothing else."""
        self.rng = np.random.default_rng([seed, 20240817])
        self.jitter = self.rng.uniform(0.0, 0.5)
        self.bursts = 0.04 if self.rng.random() < 0.5 else 0.0
        self.left = 0
        self.drift = np.zeros(3)

    def __call__(self, move: Move, height: float) -> Move:
        """`move` with noise.

        Args:
          move: the clean one; its length sets the jitter's, so that fine moves stay fine.
          height: of the tool centre point, metres.
        """
        size = max(float(np.linalg.norm(move.delta)), 0.1 * SPEED)
        delta = move.delta + self.rng.normal(0.0, self.jitter * size, 3)
        if self.left == 0 and self.rng.random() < self.bursts:
            self.left = int(self.rng.integers(3, 7))
            direction = self.rng.normal(size=3)
            self.drift = direction / np.linalg.norm(direction) * self.rng.uniform(0.5, 1.2) * SPEED
        if self.left > 0:
            self.left -= 1
            delta = delta + self.drift
        delta[2] = max(delta[2], min(LOWEST - height, move.delta[2]))
        return dataclasses.replace(move, delta=delta)


class Lapses:
    """One or two stretches of an episode in which the arm goes somewhere else, mostly with its gripper closed.

    So does a policy that has missed the cube, or lost it: it carries nothing to the goal. What the expert would do
    during a lapse is not to be learnt, since it is not done; what it does afterwards is: it opens and comes again.
    """

    def __init__(self, seed: int, share: float):
        """Args: seed: of the episode; share: of the episodes that have lapses."""
        rng = np.random.default_rng([seed, 20261127])
        self.steps: dict[int, tuple[np.ndarray, float]] = {}
        if rng.random() >= share:
            return
        for earliest in (2, 40)[: rng.integers(1, 3)]:
            begin, length = earliest + int(rng.integers(24)), int(rng.integers(6, 21))
            lapse = rng.uniform(*NEAR), OPEN if rng.random() < 0.25 else CLOSED
            self.steps.update(dict.fromkeys(range(begin, begin + length), lapse))

    def __call__(self, step: int, tcp: np.ndarray) -> Move | None:
        """What is done in a control step instead of the expert's move, if anything; tcp f64 [3], metres."""
        if step not in self.steps:
            return None
        place, gripper = self.steps[step]
        return Move(limited(place - tcp), 0.0, gripper)


def drawn_side(seed: int) -> int:
    """On which side of the cube an episode's expert goes round it: 1 or -1, as likely."""
    return int(np.random.default_rng([seed, 20261129]).choice([-1, 1]))


@dataclasses.dataclass(frozen=True)
class Instead:
    """What is executed in a control step in place of the expert's action.

    Attributes:
      done: f32 [A].
      answer: f32 [A], what is taught; None: nothing is.
    """

    done: np.ndarray
    answer: np.ndarray | None = None


class Recorder(Filming):
    """Makes demonstrations in one simulator; lives in a worker process."""

    def __init__(
        self,
        task: str,
        control_mode: str = "pd_joint_pos",
        picture_size: tuple[int, int] = (128, 128),
        device: str = "cpu",
        noise: bool = True,
        cameras: Sequence[str] = ("render",),
        picture_every: int = 1,
        lapses: float = 0.0,
        around: bool = False,
    ):
        """Makes the simulator.

        Args:
          task, control_mode, picture_size, device, cameras: as `par_jax.sim.simulator.Simulator`.
          noise: whether the expert is disturbed.
          picture_every: control steps between pictures.
          lapses: share of the episodes that have `Lapses`.
          around: PushCube's expert goes round the cube, on a side that is drawn, and not over it.

        Raises:
          UserError: as the simulator.
        """
        super().__init__(task, control_mode, picture_size, device, cameras, picture_every)
        self.hand = make_hand(self.simulator)
        self.max_steps = get_task(task).max_steps
        self.expert = EXPERTS[task]
        self.noise, self.share, self.around = noise, lapses, around

    def begin(self, seed: int) -> None:
        """An episode begins, its simulator reset: what will happen in it is drawn."""
        self.lapses = Lapses(seed, self.share)
        side = {"side": drawn_side(seed)} if self.around else {}
        self.driver = self.expert(self.simulator.env, **side)

    def instead(self, take: Take, move: Move, over: bool) -> Instead | None:
        """What is executed next in place of the expert's move, if anything.

        Args:
          take: the episode so far.
          move: the expert's.
          over: whether the task is done, and what follows is the tail.
        """
        lapse = None if over else self.lapses(len(take), self.tcp())
        return None if lapse is None else Instead(self.hand(lapse)[0])

    def tcp(self) -> np.ndarray:
        """The tool centre point, f64 [3], metres."""
        return self.simulator.env.agent.tcp.pose.p[0].cpu().numpy().astype(np.float64)

    def episode(self, seed: int, pictures: bool = True) -> dict[str, np.ndarray] | None:
        """One demonstration.

        Args:
          seed: of the initial state and of the noise.
          pictures: whether to render (tests of the expert alone are fast without).

        Returns:
          None if the expert failed, else the record's arrays as `par_jax.data.episodes` lists them.
        """
        simulator = self.simulator
        simulator.reset([seed])
        self.begin(seed)
        noise = Noise(seed) if self.noise else None
        take = Take(simulator, pictures, self.picture_every)
        tail = -1
        while len(take) < self.max_steps and tail != 0:
            move = self.driver()
            action = self.hand(move)
            done, taught = action, True
            other = self.instead(take, move, tail >= 0)
            if other is not None:
                done, taught = other.done[None], other.answer is not None
                action = action if other.answer is None else other.answer[None]
            elif noise is not None and tail < 0:
                done = self.hand(noise(move, float(self.tcp()[2])))
            _, success = simulator.step(done)
            take.add(action[0], done[0], taught)
            if tail > 0:
                tail -= 1
            elif bool(success[0]):
                tail = TAIL
        if tail < 0:
            return None
        return take.record(seed)
