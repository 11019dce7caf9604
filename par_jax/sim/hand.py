"""From a Cartesian move to the numbers of a control mode."""

import numpy as np

from par_jax.sim.expert import Move
from par_jax.sim.simulator import Simulator


class JointHand:
    """Moves as absolute joint targets (`pd_joint_pos`): inverse kinematics of the present pose plus the move.

    This is the computation that ManiSkill's end-effector controllers make inside; made here, what is recorded is what
    is executed, to the last bit.
    """

    def __init__(self, simulator: Simulator):
        """Args: simulator: one environment on the CPU, control mode `pd_joint_pos`."""
        from mani_skill.agents.controllers.utils.kinematics import Kinematics

        self.simulator = simulator
        agent = simulator.env.agent
        self.arm_joints = agent.controller.controllers["arm"].active_joint_indices
        self.solver = Kinematics(agent.urdf_path, agent.ee_link_name, agent.robot, self.arm_joints)

    def __call__(self, move: Move) -> np.ndarray:
        """Joint targets of the arm (radians) and the gripper's number in -1..1: f32 [1, 8]."""
        import torch
        from mani_skill.utils.geometry.rotation_conversions import quaternion_multiply
        from mani_skill.utils.structs import Pose

        # A reset builds the scene anew: nothing of the robot may be kept from one episode to the next.
        agent = self.simulator.env.agent
        qpos = agent.robot.get_qpos()
        pose = agent.robot.pose.inv() * agent.tcp.pose
        half = move.yaw / 2
        turn = torch.tensor([[np.cos(half), 0.0, 0.0, np.sin(half)]], dtype=torch.float32)
        delta = torch.as_tensor(move.delta, dtype=torch.float32)[None]
        target = Pose.create_from_pq(pose.p + delta, quaternion_multiply(turn, pose.q))
        # At the edge of the reach the solver stops short of its tolerance; its best answer still goes the right way,
        # where ManiSkill's own controller would stand still.
        joints, _, _ = self.solver.pmodel.compute_inverse_kinematics(
            self.solver.end_link_idx,
            target.sp,
            initial_qpos=qpos[0].numpy(),
            active_qmask=self.solver.qmask,
            max_iterations=100,
        )
        return np.concatenate([joints[self.arm_joints], [move.gripper]]).astype(np.float32)[None]


class PoseHand:
    """Moves as `pd_ee_delta_pose` actions: displacement over 0.1 m, rotation over -0.1 rad, gripper.

    The rotation's sign is ManiSkill's: it multiplies the action by its lower bound.
    """

    def __call__(self, move: Move) -> np.ndarray:
        """f32 [1, 7]."""
        delta = np.clip(np.asarray(move.delta) / 0.1, -1, 1)
        return np.array([[*delta, 0.0, 0.0, -move.yaw / 0.1, move.gripper]], np.float32)


def make_hand(simulator: Simulator) -> JointHand | PoseHand:
    """The translation for a simulator's control mode."""
    return JointHand(simulator) if simulator.control_mode == "pd_joint_pos" else PoseHand()
