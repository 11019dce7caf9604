"""From a seed to one recorded demonstration, and from a block of seeds to one shard on disk.

How noise is used (DART, Laskey et al. 2017): the expert's clean move is the recorded `action`; what is executed is that
move plus noise, and it is recorded too, as `executed`. A policy so learns clean answers in states that only mistakes
lead to, and replaying `executed` reproduces the episode exactly.

Axes: T actions, T+1 pictures, A action numbers, J joints.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from par_jax.data import episodes as disk
from par_jax.sim.expert import EXPERTS, SPEED, Move
from par_jax.sim.hand import make_hand
from par_jax.sim.simulator import Simulator
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


class Recorder:
    """Makes demonstrations in one simulator; lives in a worker process."""

    def __init__(
        self,
        task: str,
        control_mode: str = "pd_joint_pos",
        picture_size: tuple[int, int] = (128, 128),
        device: str = "cpu",
        noise: bool = True,
        cameras: Sequence[str] = ("render",),
    ):
        """Makes the simulator.

        Args:
          task, control_mode, picture_size, device, cameras: as `par_jax.sim.simulator.Simulator`.
          noise: whether the expert is disturbed.

        Raises:
          UserError: as the simulator.
        """
        self.simulator = Simulator(task, control_mode, picture_size, device=device, reward=False, cameras=cameras)
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
        actions, executed, qpos, frames = [], [], [numbers(simulator.qpos())], []
        frames.append(self._png() if pictures else b"")
        tail = -1
        while len(actions) < self.max_steps and tail != 0:
            move = expert()
            action = self.hand(move)
            done = action
            if noise is not None and tail < 0:
                height = float(simulator.env.agent.tcp.pose.p[0, 2])
                done = self.hand(noise(move, height))
            _, success = simulator.step(done)
            actions.append(action[0])
            executed.append(done[0])
            qpos.append(numbers(simulator.qpos()))
            frames.append(self._png() if pictures else b"")
            if tail > 0:
                tail -= 1
            elif bool(success[0]):
                tail = TAIL
        if tail < 0:
            return None
        return {
            "action": np.stack(actions),
            "executed": np.stack(executed),
            "qpos": np.stack(qpos),
            "seed": np.array([seed], np.int64),
            **disk.join_pictures(frames),
        }

    def block(self, folder: str, first_seed: int, count: int) -> Iterator[int]:
        """Records the seeds `first_seed .. first_seed + count - 1` into one shard, which appears when it is whole.

        Yields:
          the number of successes so far, after each seed.
        """
        records = []
        for seed in range(first_seed, first_seed + count):
            episode = self.episode(seed)
            if episode is not None:
                records.append(episode)
            yield len(records)
        disk.write_shard(Path(folder), first_seed, records)

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()

    def _png(self) -> bytes:
        return png(self.simulator.picture()[0].cpu().numpy())


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as a lossless PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=3)
    return file.getvalue()


def numbers(tensor: Any) -> np.ndarray:
    """The first row of a torch tensor as a float32 array of its own."""
    return tensor[0].cpu().numpy().astype(np.float32).copy()
