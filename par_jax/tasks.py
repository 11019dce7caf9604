"""The tasks and the cameras: what a flag value means in the simulator and in words. Imports no simulator."""

import dataclasses
from collections.abc import Sequence

from par_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One manipulation task.

    Attributes:
      env_id: ManiSkill's name of it.
      instruction: what the model is told.
      max_steps: control steps after which the scripted expert gives up on a demonstration. Evaluation
        protocols set their own limit; ManiSkill's registered one (50) is too short for StackCube.
      robot: ManiSkill's name of the arm that does it, where no camera asks for another.
    """

    env_id: str
    instruction: str
    max_steps: int
    robot: str = "panda"


TASKS: dict[str, Task] = {
    "pushcube": Task("PushCube-v1", "Push the cube to the goal region in front of it.", 120),
    "pickcube": Task("PickCube-v1", "Pick up the cube and move it to the goal position.", 160),
    "stackcube": Task("StackCube-v1", "Pick up the red cube and stack it on the green cube.", 200, "panda_wristcam"),
}

# What the simulator ships besides: no expert knows how, but a moving arm shows how things move.
SCENES: dict[str, Task] = {
    "liftpeg": Task("LiftPegUpright-v1", "Move.", 0),
    "pokecube": Task("PokeCube-v1", "Move.", 0),
    "pullcube": Task("PullCube-v1", "Move.", 0),
    "rollball": Task("RollBall-v1", "Move.", 0),
    "placesphere": Task("PlaceSphere-v1", "Move.", 0),
    "stackpyramid": Task("StackPyramid-v1", "Move.", 0),
}

# What of a picture matters: the arm, the cube that is moved, and where to (StackCube's is the other cube).
SEGMENTS = ("arm", "cube", "goal")

CONTROL_MODES = ("pd_joint_pos", "pd_ee_delta_pose")


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
      uid: ManiSkill's name of it.
      sensor: whether ManiSkill counts it among the robot's senses; it then draws without PickCube's goal by itself.
      robot: the arm that carries it, None where it stands by itself.
    """

    uid: str
    sensor: bool
    robot: str | None = None


CAMERAS: dict[str, Camera] = {
    # The human render camera: arm, table and goal from the side; the papers look through it.
    "render": Camera("render_camera", sensor=False),
    # The sensor camera: the table from the front and above, wider.
    "base": Camera("base_camera", sensor=True),
    # The wrist camera: what lies under the gripper, between the fingers. Its arm begins with the wrist turned by 90
    # degrees against the plain one's, and in joint positions the two do not understand each other.
    "hand": Camera("hand_camera", sensor=True, robot="panda_wristcam"),
}


def get_task(name: str) -> Task:
    """The task of a flag value.

    Raises:
      UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def get_scene(name: str) -> Task:
    """The task or scene of a flag value.

    Raises:
      UserError: there is neither.
    """
    known = TASKS | SCENES
    if name not in known:
        raise UserError(f"unknown task or scene {name!r}: choose one of {', '.join(known)}")
    return known[name]


def check_control_mode(name: str) -> None:
    """Refuses control modes that neither the expert nor the policies speak.

    Raises:
      UserError: unknown control mode.
    """
    if name not in CONTROL_MODES:
        raise UserError(f"unknown control mode {name!r}: choose one of {', '.join(CONTROL_MODES)}")


def get_cameras(names: str) -> tuple[str, ...]:
    """The cameras of a flag value, in its order.

    Args:
      names: one or more of `CAMERAS`, with commas between them, as `render,hand`.

    Raises:
      UserError: there is no such camera, one comes twice, or there is none.
    """
    cameras = tuple(name.strip() for name in names.split(","))
    for name in cameras:
        if name not in CAMERAS:
            raise UserError(f"unknown camera {name!r}: name one or more of {', '.join(CAMERAS)}, with commas between")
        if cameras.count(name) > 1:
            raise UserError(f"camera {name} is named twice: name each camera once")
    return cameras


def get_robot(task: str, cameras: Sequence[str]) -> str:
    """ManiSkill's name of the arm that does a task and carries the cameras.

    Args:
      task: a name in `TASKS` or `SCENES`.
      cameras: names in `CAMERAS`.

    Raises:
      UserError: there is no such task or scene.
    """
    carriers = [CAMERAS[name].robot for name in cameras]
    return next((robot for robot in carriers if robot is not None), get_scene(task).robot)
