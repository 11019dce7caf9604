"""Writes a trained policy's step as compiled programs and weights, to be called without this package.

python -m experiments.export --checkpoint=runs/pushcube --out=exported/pushcube
"""

from pathlib import Path

from absl import flags

from experiments import app, devices
from experiments.model_flags import adjusted, define_sampling_flags
from par_jax.errors import UserError
from par_jax.export import PLATFORMS, export

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A trained run's --workdir, or a released folder.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_string("task", None, "What it shall do, of a policy that was trained on several tasks.")
    flags.DEFINE_integer("batch", 1, "Robots that act together.", lower_bound=1)
    flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], f"Where it shall run: of {', '.join(PLATFORMS)}.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of weights and computation; training's by default.")
    define_sampling_flags()


def main() -> None:
    """The command."""
    if not FLAGS.checkpoint or not FLAGS.out:
        raise UserError("say what to export and where to: --checkpoint=runs/pushcube --out=exported/pushcube")
    devices.choose("cpu")
    folder, out = Path(FLAGS.checkpoint), Path(FLAGS.out)
    export(folder, out, FLAGS.batch, FLAGS.platforms, lambda config: adjusted(config, FLAGS), FLAGS.task)
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    print(f"{out}: {size:.1f} MiB; python experiments/run_exported.py {out} calls it")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
