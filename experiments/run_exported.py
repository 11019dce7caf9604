"""An exported policy at work, in one file that needs jax, numpy and safetensors only: copy it to the robot.

python experiments/run_exported.py exported/pushcube
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.flax import load_file


class ExportedPolicy:
    """A policy as `experiments.export` wrote it, for the number of robots that it was exported for.

    Attributes:
      about: what goes in and comes out, from `policy.json`.
    """

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        self.about = json.loads((folder / "policy.json").read_text())
        self._weights = jax.device_put(load_file(folder / "weights.safetensors"))
        programs = (export.deserialize((folder / f"{name}.jaxexport").read_bytes()) for name in ("start", "step"))
        start, step = programs
        # The state is given away at each step, so that its memory is used again.
        self._start, self._step = jax.jit(start.call), jax.jit(step.call, donate_argnums=1)
        self._state: dict[str, jax.Array] = {}

    def reset(self, seed: int = 0) -> None:
        """Begins an episode."""
        keys = jax.random.split(jax.random.key(seed), self.about["batch"])
        self._state = self._start(self._weights, jax.random.key_data(keys))

    def act(self, pictures: np.ndarray) -> np.ndarray:
        """The next chunk of actions, to be executed whole before the next call.

        Args:
          pictures: uint8 [B, H, W, 3], what the cameras show, side by side.

        Returns:
          float32 [B, L, A], in the controller's units.
        """
        self._state, actions = self._step(self._weights, self._state, pictures)
        return np.asarray(actions)


def main(folder: str) -> None:
    """Calls the policy twice on grey pictures."""
    policy = ExportedPolicy(folder)
    about = policy.about
    height, width = about["camera_picture"]
    pictures = np.full((about["batch"], height, width * len(about["cameras"]), 3), 128, np.uint8)
    policy.reset()
    for _ in range(2):
        actions = policy.act(pictures)
    print(f"{about['instruction']} {actions.shape[1]} actions of {actions.shape[2]} numbers, the first:")
    print(np.array2string(actions[0, 0], precision=4))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "policy.json").exists():
        sys.exit("error: give the folder that experiments.export wrote, as in run_exported.py exported/pushcube")
    main(sys.argv[1])
