"""The tasks: what a flag value means in the simulator and in words. Imports no simulator."""

import dataclasses

from par_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One manipulation task.

    Attributes:
      env_id: ManiSkill's name of it.
      instruction: what the model is told.
      max_steps: control steps after which the scripted expert gives up on a demonstration. Evaluation
        protocols set their own limit; ManiSkill's registered one (50) is too short for StackCube.
    """

    env_id: str
    instruction: str
    max_steps: int


TASKS: dict[str, Task] = {
    "pushcube": Task("PushCube-v1", "Push the cube to the goal region in front of it.", 120),
    "pickcube": Task("PickCube-v1", "Pick up the cube and move it to the goal position.", 160),
    "stackcube": Task("StackCube-v1", "Pick up the red cube and stack it on the green cube.", 200),
}

CONTROL_MODES = ("pd_joint_pos", "pd_ee_delta_pose")


def get_task(name: str) -> Task:
    """The task of a flag value.

    Raises:
      UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def check_control_mode(name: str) -> None:
    """Refuses control modes that neither the expert nor the policies speak.

    Raises:
      UserError: unknown control mode.
    """
    if name not in CONTROL_MODES:
        raise UserError(f"unknown control mode {name!r}: choose one of {', '.join(CONTROL_MODES)}")
