"""Which of a picture's pixels show the arm, the cube and the goal."""

from typing import Any

from par_jax.sim.simulator import Simulator
from par_jax.tasks import CAMERAS

# ManiSkill's names, in its tasks, of the cube that is moved and of where to.
_CUBE_AND_GOAL = {
    "pushcube": ("obj", "goal_region"),
    "pickcube": ("cube", "goal_site"),
    "stackcube": ("cubeA", "cubeB"),
}


def segments(simulator: Simulator) -> Any:
    """Of the last `Simulator.picture`: torch uint8 [B, H, n*W], k + 1 for the k-th of `par_jax.tasks.SEGMENTS`.

    0 is everything else. What hides behind something is not seen.
    """
    import torch

    env, cameras = simulator.env, [CAMERAS[name] for name in simulator.cameras]
    things = [env.agent.robot.get_links(), *([getattr(env, name)] for name in _CUBE_AND_GOAL[simulator.task])]
    drawn = [(env.scene.sensors if c.sensor else env.scene.human_render_cameras)[c.uid] for c in cameras]
    seen = [camera.get_obs(rgb=False, depth=False, position=False)["segmentation"] for camera in drawn]
    ids = torch.cat(seen, dim=2)[..., 0]
    labels = torch.zeros_like(ids, dtype=torch.uint8)
    for number, parts in enumerate(things, 1):
        for part in parts:
            labels[ids == int(part.per_scene_id[0])] = number
    return labels
