"""A scripted expert that looks at the true poses: closed loop, one small Cartesian move at a time.

Every decision is a function of the present state and a remembered mode (reach, carry, release), so the expert
recovers from anything that noise does to it: a slipped cube is approached again, a dropped one picked up again.
Lengths in metres, angles in radians, in the world's frame (the table's surface is z = 0, x points away from the robot).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

OPEN, CLOSED = 1.0, -1.0
SPEED = 0.03
"""Longest move a control step asks for, metres: 0.3 of the end-effector controller's range."""

LEAD = 2.0
"""The arm covers about 45% of a small move in the step that asks for it: fine moves ask for twice the way."""


@dataclasses.dataclass(frozen=True)
class Move:
    """What the expert wants of the next control step.

    Attributes:
      delta: f64 [3], displacement of the tool centre point.
      yaw: turn about the vertical.
      gripper: in -1 (closed) to 1 (open).
    """

    delta: np.ndarray
    yaw: float
    gripper: float


def limited(delta: np.ndarray, length: float = SPEED) -> np.ndarray:
    """`delta` shortened to `length` where it is longer; its direction stays."""
    norm = float(np.linalg.norm(delta))
    return delta if norm <= length else delta * (length / norm)


def _array(tensor: Any) -> np.ndarray:
    return tensor[0].cpu().numpy().astype(np.float64)


class Push:
    """Pushes the cube from behind along the line to the goal; lifts and starts again when it slips off sideways.

    Attributes:
      side: how it comes behind the cube: 0 over it; 1 or -1 round it, on its left or right as seen from the robot. Once
        the hand has come down on one side it stays there.
    """

    HIGH = 0.09
    LOW = 0.015
    BESIDE = 0.08

    def __init__(self, env: Any, side: int = 0):
        """Args: env: ManiSkill's PushCube with one scene; side: see above."""
        self.env = env
        self.pushing = False
        self.side = side

    def __call__(self) -> Move:
        """The next move."""
        tcp = _array(self.env.agent.tcp.pose.p)
        cube = _array(self.env.obj.pose.p)
        goal = _array(self.env.goal_region.pose.p)
        way = goal[:2] - cube[:2]
        distance = float(np.linalg.norm(way))
        along = way / max(distance, 1e-6) if distance > 0.02 else np.array([1.0, 0.0])
        across = np.array([-along[1], along[0]])
        offset = tcp[:2] - cube[:2]
        behind, beside = float(-offset @ along), float(offset @ across)
        limit = 0.02 if self.pushing else 0.012
        self.pushing = abs(beside) < limit and behind > 0.02 and tcp[2] < 0.04
        if self.pushing:
            # Aim at the goal's centre; steering across keeps the push through the cube's middle.
            ahead = max(distance - 0.05, 0.0) + max(behind - 0.03, 0.0)
            target = tcp[:2] + along * min(ahead, SPEED) - across * beside
            return Move(limited(np.array([*(target - tcp[:2]), self.LOW - tcp[2]])), 0.0, CLOSED)
        start = cube[:2] - along * 0.065
        gap = float(np.linalg.norm(start - tcp[:2]))
        clear = behind > 0.045
        if self.side and not clear:
            settled = abs(beside) > 0.03 and tcp[2] < 0.1
            side = np.sign(beside) if settled else self.side
            # First down beside the cube, then back.
            back = 0.08 if abs(beside) > 0.06 else 0.0
            place = cube[:2] - along * back + across * side * self.BESIDE
            return Move(limited(np.array([*(place - tcp[:2]), self.LOW - tcp[2]])), 0.0, CLOSED)
        height = self.LOW + np.clip((gap - 0.01) * (1.5 if clear else 6.0), 0.0, self.HIGH - self.LOW)
        delta = np.array([*(start - tcp[:2]), height - tcp[2]])
        if not clear and tcp[2] < self.HIGH - 0.03:
            delta[:2] = 0.0
        return Move(limited(delta), 0.0, CLOSED)


class Pick:
    """Grasps a cube from above and carries it: shared by PickCube and StackCube."""

    def __init__(self, env: Any, cube: Any):
        """Args: env: ManiSkill's environment with one scene; cube: the actor to grasp."""
        self.env = env
        self.cube = cube
        self.closed_for = 0

    def state(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Tool centre point [3], cube [3], and whether the cube is in the gripper."""
        grasped = bool(self.env.agent.is_grasping(self.cube)[0])
        return _array(self.env.agent.tcp.pose.p), _array(self.cube.pose.p), grasped

    def grasp(self, tcp: np.ndarray, cube: np.ndarray, grasped: bool) -> Move | None:
        """The next move towards a firm grasp; None once it has been held for three steps.

        The hand does not turn: the grasp holds whatever the cube's angle, which pictures of 100 pixels hardly show, so
        that a policy could not learn to follow it.

        Args:
          tcp, cube, grasped: from `state`.
        """
        gap = float(np.linalg.norm(cube[:2] - tcp[:2]))
        near = gap < 0.012 and abs(cube[2] - tcp[2]) < 0.012
        if grasped or (near and self.closed_for >= 0):
            self.closed_for += 1
        else:
            self.closed_for = 0
        if self.closed_for > 8 and not grasped:
            # Closed on nothing, or on an edge: open and come again.
            self.closed_for = -4
        if grasped and self.closed_for > 3:
            return None
        if self.closed_for > 0:
            return Move(limited(cube - tcp, 0.005), 0.0, CLOSED)
        # A funnel: the further from above the cube, the higher.
        height = cube[2] + np.clip((gap - 0.008) * 2.5, 0.0, 0.08)
        delta = np.array([*(cube[:2] - tcp[:2]), height - tcp[2]])
        return Move(limited(LEAD * delta), 0.0, OPEN)


class PickToGoal(Pick):
    """PickCube: grasp, then bring the cube to the goal and hold it there."""

    def __init__(self, env: Any):
        """Args: env: ManiSkill's PickCube with one scene."""
        super().__init__(env, env.cube)

    def __call__(self) -> Move:
        """The next move."""
        tcp, cube, grasped = self.state()
        move = self.grasp(tcp, cube, grasped)
        if move is not None:
            return move
        return Move(limited(LEAD * (_array(self.env.goal_site.pose.p) - cube)), 0.0, CLOSED)


class Stack(Pick):
    """StackCube: grasp the red cube, carry it over the green one, lower, let go, rise."""

    def __init__(self, env: Any):
        """Args: env: ManiSkill's StackCube with one scene."""
        super().__init__(env, env.cubeA)
        self.released_for = 0

    def __call__(self) -> Move:
        """The next move."""
        tcp, cube, grasped = self.state()
        base = _array(self.env.cubeB.pose.p)
        offset = base + np.array([0.0, 0.0, 0.04]) - cube
        gap = float(np.linalg.norm(offset[:2]))
        placed = gap < 0.02 and abs(offset[2]) < 0.006
        if self.released_for > 0 and placed:
            self.released_for += 1
            rise = SPEED if self.released_for > 3 and tcp[2] < 0.16 else 0.0
            return Move(np.array([0.0, 0.0, rise]), 0.0, OPEN)
        self.released_for = 0
        move = self.grasp(tcp, cube, grasped)
        if move is not None:
            return move
        if gap < 0.006 and abs(offset[2]) < 0.004:
            self.released_for = 1
            self.closed_for = 0
            return Move(np.zeros(3), 0.0, OPEN)
        height = np.clip((gap - 0.004) * 2.5, 0.0, 0.06)
        lift = offset[2] + height
        delta = np.array([*offset[:2], lift])
        if lift > 0.02 and gap < 0.09:
            # Too low to pass over the green cube: rise first.
            delta[:2] = 0.0
        return Move(limited(LEAD * delta), 0.0, CLOSED)


def same_mode(expert: object, other: object) -> None:
    """Lets an expert go on as another one of its task would: what it remembers is numbers, what it looks at is not."""
    vars(expert).update({name: value for name, value in vars(other).items() if isinstance(value, int)})


EXPERTS: dict[str, Callable[..., Callable[[], Move]]] = {"pushcube": Push, "pickcube": PickToGoal, "stackcube": Stack}
