"""Collects demonstrations in the real simulator.

    python -m experiments.collect --task=pushcube --episodes=1000 --out=data/pushcube --workers=2
    python -m experiments.collect --task=pickcube --cameras=render,hand --out=data/two-cameras
    python -m experiments.collect --task=pushcube --from=trajectory.h5 --out=data/recorded
    python -m experiments.collect --task=rollball --motion --out=data/rollball
    python -m experiments.collect --task=pushcube --policy=runs/pushcube --out=data/corrections

Type the same command again to go on where it stopped, or with more --episodes to extend.
"""

import dataclasses
import re
from pathlib import Path

from absl import flags

from experiments import app
from par_jax.errors import UserError
from par_jax.sim import collect
from par_jax.tasks import SCENES, check_control_mode, get_cameras, get_task

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's options."""
    flags.DEFINE_string("task", None, "pushcube, pickcube or stackcube.")
    flags.DEFINE_integer("episodes", 1000, "Successful demonstrations wanted.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder to write; data/<task> by default.")
    flags.DEFINE_integer("workers", 2, "Processes, each with a simulator of its own.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "First seed; the demonstrations' seeds count up from it.", lower_bound=0)
    flags.DEFINE_string("control_mode", "pd_joint_pos", "pd_joint_pos or pd_ee_delta_pose.")
    flags.DEFINE_string("picture_size", "128", "Pixels of each camera's pictures: a side, or HEIGHTxWIDTH.")
    flags.DEFINE_integer("picture_every", 1, "Control steps from picture to picture: 4 films a quarter.", lower_bound=1)
    flags.DEFINE_string("cameras", "render", "Of render, base, hand; several, as render,hand, are stitched.")
    flags.DEFINE_string("device", "cpu", "cpu or gpu: where pictures are rendered.")
    flags.DEFINE_string("from", None, "ManiSkill's recorded .h5 trajectories to read instead of the expert.")
    flags.DEFINE_bool("motion", False, f"Videos of an arm that moves at random; also of {', '.join(SCENES)}.")
    flags.DEFINE_bool("noise", True, "Disturb the expert, so that the data shows recoveries.")
    flags.DEFINE_float("lapses", 0.0, "Share of episodes in which the arm errs for a while.", 0.0, 1.0)
    flags.DEFINE_bool("around", False, "PushCube's expert goes round the cube, on a side that is drawn, not over it.")
    flags.DEFINE_string("policy", None, "Checkpoint that drives in turn with the expert, who corrects it (DAgger).")
    flags.DEFINE_float(
        "takeover",
        collect.Settings.takeover,
        "How often the expert takes over after a chunk of the policy's.",
        0.0,
        1.0,
    )


def picture_size(text: str) -> tuple[int, int]:
    """Height and width from `128` or `496x784`.

    Raises:
      UserError: it is neither, or less than 16 pixels.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(size) < 16:
        raise UserError(f"--picture_size={text}: give a side of 16 pixels or more, or height and width, as 496x784")
    return size


def main() -> None:
    """Flags to `par_jax.sim.collect`."""
    if FLAGS.task is None:
        raise UserError("which task? add --task=pushcube, --task=pickcube or --task=stackcube")
    if FLAGS.motion and FLAGS["from"].value:
        raise UserError("--motion and --from name two sources: leave one out")
    if FLAGS.policy is not None and (FLAGS.motion or FLAGS["from"].value):
        raise UserError("--policy drives with the expert, and --motion and --from have none: leave one out")
    if FLAGS.policy is None and FLAGS.takeover != collect.Settings.takeover:
        raise UserError("--takeover says how often the expert takes over from a policy: add --policy, or leave it out")
    if FLAGS.around and (FLAGS.task != "pushcube" or FLAGS.motion or FLAGS["from"].value):
        raise UserError("--around is of pushcube's expert, who can go round the cube: leave it out")
    settings = collect.Settings(
        task=FLAGS.task,
        control_mode=FLAGS.control_mode,
        picture_size=picture_size(FLAGS.picture_size),
        device=FLAGS.device,
        seed_first=FLAGS.seed,
        noise=FLAGS.noise,
        trajectories=FLAGS["from"].value,
        cameras=get_cameras(FLAGS.cameras),
        motion=FLAGS.motion,
        picture_every=FLAGS.picture_every,
        lapses=FLAGS.lapses,
        around=FLAGS.around,
        policy=FLAGS.policy,
        takeover=FLAGS.takeover,
    )
    if FLAGS.policy is not None:
        # Imported here: it brings jax, and a bad flag should be refused in a second.
        from par_jax import corrections

        get_task(settings.task)
        check_control_mode(settings.control_mode)
        checked = corrections.check(
            FLAGS.policy,
            settings.task,
            settings.control_mode,
            settings.picture_size,
            settings.cameras,
            settings.picture_every,
        )
        settings = dataclasses.replace(settings, policy_checksum=checked)
    out = Path(FLAGS.out or f"data/{FLAGS.task}")
    report = collect.collect(settings, out, FLAGS.episodes, FLAGS.workers)
    print(report)


if __name__ == "__main__":
    define_flags()
    app.run(main)
