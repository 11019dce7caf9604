"""Videos of an arm that moves about with no aim, in any scene: what video pretraining learns from.

Axes as in `par_jax.sim.recorder`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from par_jax.sim.expert import CLOSED, OPEN, SPEED, Move, limited
from par_jax.sim.filming import Filming, Take
from par_jax.sim.hand import make_hand

STEPS = 48
"""Actions of a video: six chunks."""

NEAR = np.array([[-0.25, -0.25, 0.02], [0.2, 0.25, 0.3]])
"""Corners of the room that the arm wanders in, metres."""


class Wander:
    """From one random place to the next; every second one is at a thing that can be moved."""

    def __init__(self, env: Any, seed: int):
        """Args: env: ManiSkill's environment with one scene; seed: of all that is drawn."""
        self.env, self.rng = env, np.random.default_rng([seed, 0x6D6F7665])
        self.left = 0
        self._choose()

    def _choose(self) -> None:
        things = [actor for actor in self.env.scene.actors.values() if actor.px_body_type == "dynamic"]
        self.target = self.rng.uniform(*NEAR)
        if things and self.rng.random() < 0.5:
            thing = things[self.rng.integers(len(things))]
            place = thing.pose.p[0].cpu().numpy().astype(np.float64)
            self.target = np.clip(place + self.rng.normal(0, 0.01, 3), *NEAR)
        self.left = int(self.rng.integers(8, 20))
        self.yaw = float(self.rng.normal(0, 0.02))
        self.gripper = float(self.rng.choice([OPEN, CLOSED]))
        self.speed = float(self.rng.uniform(0.3, 1.0)) * SPEED

    def __call__(self) -> Move:
        """The next move."""
        tcp = self.env.agent.tcp.pose.p[0].cpu().numpy().astype(np.float64)
        if self.left == 0 or np.linalg.norm(self.target - tcp) < 0.01:
            self._choose()
        self.left -= 1
        return Move(limited(2.0 * (self.target - tcp), self.speed), self.yaw, self.gripper)


class Motions(Filming):
    """Makes videos in one simulator; lives in a worker process, as `par_jax.sim.recorder.Recorder`."""

    def __init__(
        self,
        task: str,
        control_mode: str = "pd_joint_pos",
        picture_size: tuple[int, int] = (128, 128),
        device: str = "cpu",
        cameras: Sequence[str] = ("render",),
        picture_every: int = 1,
    ):
        """As `Filming`."""
        super().__init__(task, control_mode, picture_size, device, cameras, picture_every)
        self.hand = make_hand(self.simulator)

    def episode(self, seed: int, pictures: bool = True) -> dict[str, np.ndarray]:
        """One video, as `Recorder.episode` gives a demonstration; its actions are what the arm happened to do."""
        simulator = self.simulator
        simulator.reset([seed])
        wander = Wander(simulator.env, seed)
        take = Take(simulator, pictures, self.picture_every)
        for _ in range(STEPS):
            action = self.hand(wander())
            simulator.step(action)
            take.add(action[0], action[0])
        return take.record(seed)
