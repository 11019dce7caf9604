"""ManiSkill's own recorded trajectories (`.h5` beside `.json`) as demonstrations: states replayed for the pictures.

The states are set, not simulated, so pictures are exact whatever the physics does on this machine. Only recorded
successes are used.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from par_jax.errors import UserError
from par_jax.sim.filming import Filming, Take
from par_jax.tasks import CAMERAS, get_robot, get_task


def read_index(path: Path, task: str, control_mode: str, cameras: Sequence[str] = ("render",)) -> list[dict[str, Any]]:
    """The successful episodes that a trajectory file's `.json` lists, each with its `episode_id`.

    Args:
      path: of the `.h5` file.
      task: that it must be of.
      control_mode: that its actions must be in.
      cameras: through which it will be seen; its arm must be the one that carries them.

    Raises:
      UserError: a file is missing or damaged, of another environment, control mode or arm, has no states or no success.
    """
    import h5py

    if not path.is_file():
        raise UserError(f"there is no trajectory file {path}: name ManiSkill's .h5 file in --from")
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise UserError(f"{path} has no {sidecar.name} beside it: copy both files that ManiSkill recorded")
    try:
        index = json.loads(sidecar.read_text())
        env_id, listed = index["env_info"]["env_id"], index["episodes"]
        modes = {episode["control_mode"] for episode in listed}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{sidecar} is damaged, or not ManiSkill's: {error!r}") from error
    if env_id != get_task(task).env_id:
        raise UserError(f"{path} is of {env_id}, but --task={task} means {get_task(task).env_id}")
    if modes - {control_mode}:
        raise UserError(
            f"{path} is in control mode {', '.join(sorted(modes))}: add --control_mode=..., or convert it with "
            f"ManiSkill's replay_trajectory to {control_mode}"
        )
    try:
        with h5py.File(path) as file:
            usable = [episode for episode in listed if _succeeded(file, episode)]
            for episode in usable:
                if "env_states" not in file[f"traj_{episode['episode_id']}"]:
                    raise UserError(f"{path} has no env_states to replay: record with record_env_state=True")
                _check_arm(path, list(file[f"traj_{episode['episode_id']}/env_states/articulations"]), task, cameras)
    except (OSError, KeyError) as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from error
    if not usable:
        raise UserError(f"{path} holds no successful trajectory")
    return usable


def _check_arm(path: Path, found: list[str], task: str, cameras: Sequence[str]) -> None:
    """Refuses another arm's recording: it begins in another pose, which no rollout with these cameras would meet."""
    wanted = get_robot(task, cameras)
    if wanted not in found:
        fitting = [name for name in CAMERAS if get_robot(task, [name]) in found]
        advice = f"use --cameras={','.join(fitting)}, or " if fitting else ""
        raise UserError(
            f"{path} was recorded with the robot {', '.join(found)}, but --cameras={','.join(cameras)} means {wanted}: "
            f"{advice}record it with robot_uids={wanted}"
        )


def _succeeded(file: Any, episode: dict[str, Any]) -> bool:
    group = file[f"traj_{episode['episode_id']}"]
    if "success" in group:
        return bool(np.any(group["success"]))
    return bool(episode.get("success", False))


class Replayer(Filming):
    """Makes demonstrations from a trajectory file; lives in a worker process."""

    def __init__(
        self,
        path: str,
        task: str,
        control_mode: str,
        picture_size: tuple[int, int],
        device: str = "cpu",
        cameras: Sequence[str] = ("render",),
        picture_every: int = 1,
    ):
        """Makes the simulator.

        Args:
          path: of the `.h5` file.
          task, control_mode, picture_size, device, cameras: as `par_jax.sim.simulator.Simulator`.
          picture_every: control steps between pictures.

        Raises:
          UserError: as `read_index` and the simulator.
        """
        self.path = Path(path)
        self.index = read_index(self.path, task, control_mode, cameras)
        super().__init__(task, control_mode, picture_size, device, cameras, picture_every)

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """The `number`-th successful trajectory as a record of `par_jax.data.episodes` (without `executed`)."""
        import h5py

        entry = self.index[number]
        seed = entry.get("episode_seed", entry["episode_id"])
        self.simulator.reset([int(np.ravel(seed)[0]) % 2**31])
        with h5py.File(self.path) as file:
            group = file[f"traj_{entry['episode_id']}"]
            actions = np.asarray(group["actions"], np.float32)
            states = _tree(group["env_states"])
        if actions.shape[1] != self.simulator.action_dim:
            raise UserError(
                f"{self.path} has actions of {actions.shape[1]} numbers, this robot takes {self.simulator.action_dim}"
            )
        self._set(states, 0)
        take = Take(self.simulator, every=self.picture_every)
        for step, action in enumerate(actions):
            self._set(states, step + 1)
            take.add(action)
        return take.record(int(np.ravel(seed)[0]))

    def _set(self, states: Any, step: int) -> None:
        import torch

        state = _map(lambda x: torch.from_numpy(np.array(x[step], np.float32))[None], states)
        try:
            self.simulator.env.set_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.path}: the recorded state does not fit this ManiSkill's {self.simulator.task}: {error}"
            ) from error

    def numbers(self, first: int, count: int) -> range:
        """The trajectories `first .. first + count - 1`, as many as there are."""
        return range(first, min(first + count, len(self.index)))


def _tree(group: Any) -> Any:
    return {key: _tree(value) for key, value in group.items()} if hasattr(group, "items") else group[()]


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)
