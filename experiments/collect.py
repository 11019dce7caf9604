"""Collects demonstrations in the real simulator.

    python -m experiments.collect --task=pushcube --episodes=1000 --out=data/pushcube --workers=2
    python -m experiments.collect --task=pushcube --from=trajectory.h5 --out=data/recorded

Type the same command again to go on where it stopped, or with more --episodes to extend.
"""

from pathlib import Path

from absl import flags

from experiments import app
from par_jax.errors import UserError
from par_jax.sim import collect

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's options."""
    flags.DEFINE_string("task", None, "pushcube, pickcube or stackcube.")
    flags.DEFINE_integer("episodes", 1000, "Successful demonstrations wanted.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder to write; data/<task> by default.")
    flags.DEFINE_integer("workers", 2, "Processes, each with a simulator of its own.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "First seed; the demonstrations' seeds count up from it.", lower_bound=0)
    flags.DEFINE_string("control_mode", "pd_joint_pos", "pd_joint_pos or pd_ee_delta_pose.")
    flags.DEFINE_integer("picture_size", 128, "Height and width of the pictures, pixels.", lower_bound=16)
    flags.DEFINE_string("device", "cpu", "cpu or gpu: where pictures are rendered.")
    flags.DEFINE_string("from", None, "ManiSkill's recorded .h5 trajectories to read instead of the expert.")
    flags.DEFINE_bool("noise", True, "Disturb the expert, so that the data shows recoveries.")


def main() -> None:
    """Flags to `par_jax.sim.collect`."""
    if FLAGS.task is None:
        raise UserError("which task? add --task=pushcube, --task=pickcube or --task=stackcube")
    settings = collect.Settings(
        task=FLAGS.task,
        control_mode=FLAGS.control_mode,
        picture_size=(FLAGS.picture_size, FLAGS.picture_size),
        device=FLAGS.device,
        seed_first=FLAGS.seed,
        noise=FLAGS.noise,
        trajectories=FLAGS["from"].value,
    )
    out = Path(FLAGS.out or f"data/{FLAGS.task}")
    report = collect.collect(settings, out, FLAGS.episodes, FLAGS.workers)
    print(report)


if __name__ == "__main__":
    define_flags()
    app.run(main)
