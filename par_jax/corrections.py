"""Demonstrations in which a policy drives and the expert corrects it: DAgger (Ross et al. 2011).

The expert alone never shows what to do where the policy goes wrong, nor a past that the policy itself has made. Here
the policy drives for stretches of whole chunks (stretches in turn, as in HG-DAgger, Kelly et al. 2019; who drives is
drawn, no human watches). What it does is executed and remembered. What is taught is the expert's chunk: the one that
is executed where the expert drives; where the policy does, the one that the expert would have executed from the
chunk's begin, played out in a second simulator. So all of an episode is taught, chunk by chunk: chunks that follow
each other need not be one motion, which matters to look-ahead alone.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from par_jax.errors import UserError
from par_jax.policy import Carry, Policy
from par_jax.release import load_policy
from par_jax.sim.advice import Adviser
from par_jax.sim.expert import Move
from par_jax.sim.filming import Take
from par_jax.sim.recorder import Instead, Recorder
from par_jax.tasks import get_task
from par_jax.trees import checksum

BEGINS = 0.75
"""How often the policy drives an episode's first chunk."""
GIVES_BACK = 0.75
"""How often the expert gives back after a chunk of its own."""
LAST = 0.6
"""The share of an episode's longest time after which the expert drives to its end."""


def driven(seed: int, chunks: int, takeover: float) -> np.ndarray:
    """Which chunks of an episode the policy drives, bool [chunks].

    Args:
      seed: all that is drawn depends on it.
      chunks: how many.
      takeover: how often the expert takes over after a chunk of the policy's.
    """
    rng = np.random.default_rng([seed, 20261128])
    drives, now = [], bool(rng.random() < BEGINS)
    for draw in rng.random(chunks):
        drives.append(now)
        now = bool(draw >= takeover) if now else bool(draw < GIVES_BACK)
    return np.array(drives, bool)


def check(
    folder: str, task: str, control_mode: str, size: tuple[int, int], cameras: tuple[str, ...], every: int
) -> int:
    """Refuses a policy that cannot drive what is to be recorded.

    Args:
      folder: a run's, or a released one.
      task, control_mode, size (height, width), cameras: of the recording.
      every: control steps between pictures.

    Returns:
      a checksum of its parameters, for the record.

    Raises:
      UserError: there is no whole policy in it, or it was trained on something else.
    """
    config, meta, params = load_policy(folder)
    picture, mode, chunk = config.picture, meta["dataset"]["control_mode"], config.model.chunk
    wrong = []
    if task not in meta["tasks"]:
        wrong.append(f"was trained on {', '.join(meta['tasks'])}, not on {task}")
    if mode != control_mode:
        wrong.append(f"speaks {mode} (--control_mode={mode})")
    if picture.cameras != cameras:
        wrong.append(f"looks through {','.join(picture.cameras)} (--cameras={','.join(picture.cameras)})")
    if tuple(picture.size) != size:
        shape = "x".join(map(str, picture.size))
        wrong.append(f"sees pictures of {shape} (--picture_size={shape})")
    if chunk != every:
        wrong.append(f"looks, and is taught, every {chunk} steps (--picture_every={chunk})")
    if wrong:
        raise UserError(f"the policy in {folder} {' and '.join(wrong)}: change the flags, or name another in --policy")
    return sum(checksum(np.asarray(leaf)) for leaf in jax.tree.leaves(params)) % 2**63


class Corrected(Recorder):
    """Records episodes that a policy and the expert drive in turn; lives in a worker process."""

    carry: Carry

    def __init__(self, policy: str, takeover: float, **arguments: Any):
        """Makes the simulators and loads the policy.

        Args:
          policy: folder of the policy; `check` has accepted it.
          takeover: as `driven`.
          **arguments: as `Recorder`.

        Raises:
          UserError: as `Recorder`, or there is no whole policy.
        """
        # Several workers share a GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        super().__init__(**arguments)
        self.adviser = Adviser(self.simulator.task, self.simulator.control_mode, self.simulator.cameras)
        self.instruction = get_task(self.simulator.task).instruction
        self.policy = Policy.load(Path(policy))
        self.length = self.policy.config.model.chunk
        self.takeover, self.drives, self.driving = takeover, np.zeros(0, bool), False
        self.chunk = self.plan = np.zeros((0, 0), np.float32)

    def begin(self, seed: int) -> None:
        """As `Recorder.begin`."""
        super().begin(seed)
        self.adviser.reset(seed)
        self.drives = driven(seed, round(LAST * self.max_steps) // self.length, self.takeover)
        self.carry = self.policy.init(jax.random.key(seed), self.instruction)

    def instead(self, take: Take, move: Move, over: bool) -> Instead | None:
        """As `Recorder.instead`: where the policy drives, its action, and what the expert would have done."""
        number, place = divmod(len(take), self.length)
        if place == 0:
            looks = not over and number < len(self.drives)
            self.driving = looks and bool(self.drives[number])
            if looks:
                # It looks at every chunk's begin, whoever drives: its past has no holes.
                if number:
                    self.carry = self.policy.overruled(self.carry, np.stack(take.executed[-self.length :]))
                self.carry, actions, _ = self.policy.act(self.carry, take.shown)
                self.chunk = np.asarray(actions)
            if self.driving:
                self.plan = self.adviser.plan(self.simulator, self.driver, move, self.length)
        if not self.driving:
            return super().instead(take, move, over)
        return Instead(self.hand(move)[0] if over else self.chunk[place], self.plan[place])

    def close(self) -> None:
        """Frees both scenes."""
        self.adviser.close()
        super().close()
