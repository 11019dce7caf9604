"""ManiSkill behind a small torch interface: the only module that makes its environments.

Axes: B environments, H W picture, A action numbers, J joints.
"""

import gc
import logging
import os
import warnings
from collections.abc import Sequence

from par_jax.errors import UserError
from par_jax.sim import vulkan
from par_jax.tasks import CAMERAS, check_control_mode, get_cameras, get_robot, get_scene

SHADER = "default"
"""Of the cameras, as in RDT's evaluation: ManiSkill's own choice, `minimal`, has a black sky and strided pixels."""


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`, checked against this machine.

    Args:
      device: `cpu`, or `cuda` or its synonym `gpu`.

    Raises:
      UserError: an unknown name, or no GPU that torch can use.
    """
    if device == "cpu":
        return "cpu"
    if device not in ("cuda", "gpu"):
        raise UserError(f"unknown device {device!r}: choose cpu or gpu")
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "--device=gpu was asked for, but torch finds no CUDA GPU here: use --device=cpu, or install a torch "
            "built for CUDA on a machine with an NVIDIA driver"
        )
    return "cuda"


class Simulator:
    """One ManiSkill scene whose physics runs on the CPU, or `num_envs` > 1 batched ones on a GPU.

    Making it takes seconds and so does the first picture: make one and reset it.

    One scene: `device` says where pictures are drawn; an episode depends on its seed and actions alone, to the last
    bit, and evaluation protocols mean these initial states. Many: physics and pictures on the GPU; the initial state
    depends on the seed alone, but it is another one (torch's CPU and CUDA generators differ), and sums have no fixed
    order.

    Attributes:
      env: ManiSkill's own environment, for the expert's privileged view.
      on_gpu: whether actions, rewards and pictures are CUDA tensors.
      action_dim: A.
      control_freq: control steps a second.
      cameras: names in `par_jax.tasks.CAMERAS`, of a picture's parts from left to right.
    """

    def __init__(
        self,
        task: str,
        control_mode: str = "pd_joint_pos",
        picture_size: tuple[int, int] = (128, 128),
        num_envs: int = 1,
        device: str = "cpu",
        reward: bool = True,
        cameras: Sequence[str] = ("render",),
    ):
        """Makes the environment.

        Args:
          task: a name in `par_jax.tasks.TASKS` or `SCENES`.
          control_mode: one of `par_jax.tasks.CONTROL_MODES`.
          picture_size: height and width of each camera's pictures, pixels.
          num_envs: B; more than one needs a GPU.
          device: `cpu`, `cuda` or `gpu`.
          reward: whether steps compute ManiSkill's normalised dense reward (zeros otherwise, and faster).
          cameras: names in `par_jax.tasks.CAMERAS`; `hand` asks for the arm that carries it.

        Raises:
          UserError: unknown names, no usable Vulkan driver, no such device.
        """
        spec = get_scene(task)
        check_control_mode(control_mode)
        self.cameras = get_cameras(",".join(cameras))
        device = resolve_device(device)
        if num_envs > 1 and device == "cpu":
            raise UserError("ManiSkill batches environments on a GPU only: on a CPU use one process each (EnvPool)")
        vulkan.check(device)
        os.environ.setdefault("LP_NUM_THREADS", "1")
        import gymnasium
        import mani_skill.envs  # registers the tasks
        import torch

        torch.set_num_threads(1)
        mani_skill.logger.addFilter(_worth_saying)
        height, width = picture_size
        shown = dict(width=width, height=height, shader_pack=SHADER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._wrapped = gymnasium.make(
                spec.env_id,
                num_envs=num_envs,
                obs_mode="none",
                control_mode=control_mode,
                reward_mode="normalized_dense" if reward else "none",
                render_mode="rgb_array",
                robot_uids=get_robot(task, self.cameras),
                human_render_camera_configs=shown,
                sensor_configs=shown if any(CAMERAS[name].sensor for name in self.cameras) else {},
                sim_backend="physx_cuda" if num_envs > 1 else "physx_cpu",
                render_backend="cpu" if device == "cpu" else "cuda",
            )
        # Rebuilding a scene calls gc.collect(), which would walk all of torch and jax: 240 of 300 ms.
        gc.collect()
        gc.freeze()
        self.task = task
        self.control_mode = control_mode
        self.num_envs = num_envs
        self.on_gpu = num_envs > 1
        self.env = self._wrapped.unwrapped
        self.action_dim = int(self.env.single_action_space.shape[0])
        self.control_freq = int(self.env.control_freq)

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts the episodes of `seeds` (B of them).

        One scene is built anew (about 50 ms): PhysX keeps traces of what it simulated before, and they grow to
        centimetres once a cube is pushed. Of many, each is reset by itself: ManiSkill would draw all their states from
        the first seed.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        if not self.on_gpu:
            self.env.reset(seed=int(seeds[0]), options={"reconfigure": True})
            return
        import torch

        if self.env._reconfig_counter == 0 and self.env.reconfiguration_freq != 0:
            self.env.reset(seed=[int(seed) for seed in seeds])
        for index, seed in enumerate(seeds):
            env_idx = torch.tensor([index], device=self.env.device)
            self.env.reset(seed=[int(seed)], options={"env_idx": env_idx})

    def step(self, action):
        """Executes one control step.

        Args:
          action: torch float32 [B, A], on the GPU if `on_gpu` (or a numpy array), in the control mode's units.

        Returns:
          reward f32 [B] and success bool [B], torch tensors, on the GPU if `on_gpu`.
        """
        _, reward, _, _, info = self.env.step(action)
        return reward, info["success"]

    def success(self):
        """Whether the present states are successes: torch bool [B]."""
        return self.env.evaluate()["success"]

    def qpos(self):
        """Joint positions, torch f32 [B, J] (radians; metres for the two fingers)."""
        return self.env.agent.robot.get_qpos()

    def picture(self):
        """What the n cameras see, from left to right: torch uint8 [B, H, n*W, 3], contiguous, on the GPU if `on_gpu`.

        There one camera's is the renderer's own buffer: copy what must outlive the next call. Otherwise it is fresh.

        Every camera shows the goal. ManiSkill hides PickCube's from its sensors, because it tells it to policies as
        numbers; ours have pictures only, and the render camera shows it, too.
        """
        import torch

        scene, cameras = self.env.scene, [CAMERAS[name] for name in self.cameras]
        for hidden in self.env._hidden_objects:
            hidden.show_visual()
        sensors = [camera.sensor for camera in cameras]
        scene.update_render(update_sensors=any(sensors), update_human_render_cameras=not all(sensors))
        pictures = []
        for camera in cameras:
            drawn = (scene.sensors if camera.sensor else scene.human_render_cameras)[camera.uid]
            drawn.capture()
            pictures.append(drawn.get_obs(rgb=True, depth=False, position=False, segmentation=False)["rgb"])
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures, dim=2)

    def close(self) -> None:
        """Frees the scene."""
        self._wrapped.close()


def _worth_saying(record: logging.LogRecord) -> bool:
    """All that ManiSkill logs, but its doubts about arms that a task does not list: `panda_wristcam` does all three."""
    return "list of supported robots" not in record.getMessage()
