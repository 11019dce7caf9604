"""ManiSkill as a jax user sees it: pictures and actions are jax arrays, a batch of environments is one object.

Axes: B environments, H W picture, A action numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.errors import UserError
from par_jax.sim import bridge
from par_jax.sim.simulator import Simulator
from par_jax.sim.workers import Processes
from par_jax.tasks import get_task


@dataclasses.dataclass(frozen=True)
class Step:
    """What came of one control step.

    Attributes:
      reward: f32 [B], ManiSkill's normalised dense reward.
      success: bool [B], whether the state is a success now.
      elapsed: i32 [B], steps since the reset.
      truncated: bool [B], whether the step limit is reached.
    """

    reward: jax.Array
    success: jax.Array
    elapsed: jax.Array
    truncated: jax.Array


class Env:
    """B environments of one task.

    One lives in this process, with its physics on the CPU. Many on a CPU live in a process each. Many on a GPU are one
    batched ManiSkill scene in this process, whose tensors never leave the GPU. With `apart=True` either lives in a
    process of its own, for machines where torch's and jax's CUDA libraries clash (pictures then travel through the
    host).

    Attributes:
      num_envs: B.
      action_dim: A.
      max_steps: steps after which an episode counts as truncated.
    """

    def __init__(
        self,
        task: str,
        control_mode: str = "pd_joint_pos",
        picture_size: tuple[int, int] = (128, 128),
        max_steps: int = 400,
        num_envs: int = 1,
        device: str = "cpu",
        apart: bool = False,
        cameras: Sequence[str] = ("render",),
    ):
        """Makes the environments.

        Args:
          task: a name in `par_jax.tasks.TASKS`.
          control_mode: one of `par_jax.tasks.CONTROL_MODES`.
          picture_size: height and width of each camera's pictures, pixels.
          max_steps: step limit of an episode.
          num_envs: B.
          device: `cpu`, or `cuda` or `gpu`: as `par_jax.sim.simulator.Simulator` takes it.
          apart: keep torch's CUDA out of this process.
          cameras: names in `par_jax.tasks.CAMERAS`; their pictures are stitched from left to right.

        Raises:
          UserError: unknown task, control mode or camera, no usable Vulkan driver, no GPU that torch can use, or none
            that jax can where CUDA tensors come its way.
        """
        get_task(task)
        on_cpu = device == "cpu"
        arguments: dict[str, Any] = dict(
            task=task, control_mode=control_mode, picture_size=picture_size, device=device, cameras=tuple(cameras)
        )
        if on_cpu and num_envs > 1:
            self.simulator: Simulator | Processes = Processes([1] * num_envs, **arguments)
        elif apart:
            self.simulator = Processes([num_envs], **arguments)
        else:
            self.simulator = Simulator(**arguments, num_envs=num_envs)
            if self.simulator.on_gpu and jax.default_backend() != "gpu":
                self.simulator.close()
                raise UserError(
                    "--device=gpu was asked for, but jax has no GPU here: install jax[cuda13] (or jax[cuda12]), or use "
                    "--device=cpu"
                )
        self.num_envs = num_envs
        self.action_dim = self.simulator.action_dim
        self.max_steps = max_steps
        self._elapsed = np.zeros(num_envs, np.int32)

    def reset(self, seeds: Sequence[int]) -> jax.Array:
        """Starts one episode a seed.

        Args:
          seeds: B of them.

        Returns:
          the first pictures, u8 [B, H, n*W, 3].
        """
        self.simulator.reset(seeds)
        self._elapsed[:] = 0
        return self.render()

    def step(self, actions: jax.Array) -> Step:
        """Executes one control step; draws nothing.

        Args:
          actions: f32 [B, A], in the control mode's units.
        """
        if actions.shape != (self.num_envs, self.action_dim):
            raise ValueError(f"actions {actions.shape}, expected {(self.num_envs, self.action_dim)}")
        if isinstance(self.simulator, Processes):
            reward, success = (jnp.asarray(x) for x in self.simulator.step(np.asarray(actions, np.float32)))
        else:
            outcome = self.simulator.step(bridge.to_torch(jnp.asarray(actions, jnp.float32)))
            reward, success = (bridge.to_jax(x) for x in outcome)
        self._elapsed += 1
        elapsed = jnp.array(self._elapsed)
        return Step(reward, success, elapsed, elapsed >= self.max_steps)

    def render(self) -> jax.Array:
        """What the n cameras see now, u8 [B, H, n*W, 3].

        On a GPU one camera's is the renderer's own buffer, which the next call overwrites: copy what must stay.
        """
        picture = self.simulator.picture()
        return jnp.asarray(picture) if isinstance(self.simulator, Processes) else bridge.to_jax(picture)

    def close(self) -> None:
        """Frees scenes and processes."""
        self.simulator.close()
