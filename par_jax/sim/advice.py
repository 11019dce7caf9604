"""What the expert would do from here, without doing it: a second simulator that takes on the first one's state.

L control steps ahead, A action numbers.
"""

from collections.abc import Sequence

import numpy as np

from par_jax.sim.expert import EXPERTS, Move, same_mode
from par_jax.sim.hand import make_hand
from par_jax.sim.simulator import Simulator


class Adviser:
    """Plays an expert's next moves out beside an episode, whose own simulator is not touched (so that it replays)."""

    def __init__(self, task: str, control_mode: str, cameras: Sequence[str]):
        """Args: task, control_mode, cameras: as `par_jax.sim.simulator.Simulator`; cameras decide on the arm."""
        self.task = task
        self.simulator = Simulator(task, control_mode, reward=False, cameras=cameras)
        self.hand = make_hand(self.simulator)

    def reset(self, seed: int) -> None:
        """The scene of an episode: what its state does not tell."""
        self.simulator.reset([seed])

    def plan(self, simulator: Simulator, expert: object, move: Move, steps: int) -> np.ndarray:
        """The expert's actions if it drove from here, each an answer to what the one before came to.

        Args:
          simulator: the episode's, with one environment.
          expert: the episode's.
          move: the expert's for the present state.
          steps: L, at least 1.

        Returns:
          float32 [L, A].
        """
        env = self.simulator.env
        env.set_state(simulator.env.get_state())
        ahead = EXPERTS[self.task](env)
        same_mode(ahead, expert)
        actions = []
        for left in reversed(range(steps)):
            action = self.hand(move)
            actions.append(action[0])
            if left:
                self.simulator.step(action)
                move = ahead()
        return np.stack(actions)

    def close(self) -> None:
        """Frees the scene."""
        self.simulator.close()
