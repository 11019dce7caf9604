"""Merges a run's LoRA adapters into plain weights: the new run acts alike, and needs no base.

python -m experiments.merge --checkpoint=runs/adapted --out=runs/merged
"""

from pathlib import Path

from absl import flags

from experiments import app, devices
from par_jax.errors import UserError
from par_jax.runs import merge_adapters

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A --workdir of a run that was trained with --lora_rank.")
    flags.DEFINE_string("out", None, "Folder of the merged run.")


def main() -> None:
    """The command."""
    if not FLAGS.checkpoint or not FLAGS.out:
        raise UserError("say what to merge and where to: --checkpoint=runs/adapted --out=runs/merged")
    devices.choose("cpu")
    merge_adapters(Path(FLAGS.checkpoint), Path(FLAGS.out))
    print(f"{FLAGS.out} holds the merged run")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
