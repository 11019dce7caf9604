"""From a seed to one recorded demonstration, and from a block of seeds to one shard on disk.

How noise is used (DART, Laskey et al. 2017): the expert's clean move is the recorded `action`; what is executed is that
move plus noise, and it is recorded too, as `executed`. A policy so learns clean answers in states that only mistakes
lead to, and replaying `executed` reproduces the episode exactly.

Axes: T actions, T+1 pictures, A action numbers, J joints.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from par_jax.sim.expert import EXPERTS, SPEED, Move
from par_jax.sim.filming import Filming, Take
from par_jax.sim.hand import make_hand
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
    ):
        """Makes the simulator.

        Args:
          task, control_mode, picture_size, device, cameras: as `par_jax.sim.simulator.Simulator`.
          noise: whether the expert is disturbed.
          picture_every: control steps between pictures.

        Raises:
          UserError: as the simulator.
        """
        super().__init__(task, control_mode, picture_size, device, cameras, picture_every)
        self.hand = make_hand(self.simulator)
        self.max_steps = get_task(task).max_steps
        self.expert = EXPERTS[task]
        self.noise = noise

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
        expert = self.expert(simulator.env)
        noise = Noise(seed) if self.noise else None
        take = Take(simulator, pictures, self.picture_every)
        tail = -1
        while len(take) < self.max_steps and tail != 0:
            move = expert()
            action = self.hand(move)
            done = action
            if noise is not None and tail < 0:
                height = float(simulator.env.agent.tcp.pose.p[0, 2])
                done = self.hand(noise(move, height))
            _, success = simulator.step(done)
            take.add(action[0], done[0])
            if tail > 0:
                tail -= 1
            elif bool(success[0]):
                tail = TAIL
        if tail < 0:
            return None
        return take.record(seed)
