"""Writes a trained policy as a small folder to hand on: config.json and weights in bfloat16, with which it acts.

python -m experiments.release --checkpoint=runs/pushcube --out=checkpoints/pushcube
"""

from pathlib import Path

from absl import flags

from experiments import app, devices
from par_jax.errors import UserError
from par_jax.release import release

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A trained run's --workdir.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_bool("frames", False, "With what predicts frames, for videos that show them.")


def main() -> None:
    """The command."""
    if not FLAGS.checkpoint or not FLAGS.out:
        raise UserError("say what to release and where to: --checkpoint=runs/pushcube --out=checkpoints/pushcube")
    devices.choose("cpu")
    release(Path(FLAGS.checkpoint), Path(FLAGS.out), FLAGS.frames)
    size = sum(path.stat().st_size for path in Path(FLAGS.out).iterdir()) / 2**20
    print(f"{FLAGS.out}: {size:.1f} MiB; --checkpoint={FLAGS.out} takes it wherever a trained run is taken to act")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
