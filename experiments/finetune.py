"""Trains a policy on demonstrations; goes on where the same command was stopped.

python -m experiments.finetune --task=pushcube --preset=tiny --data=data/pushcube --workdir=runs/pushcube

Without a trained frame VAE (--vae, or workdir/vae) it trains that first.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import training
from experiments.app import run
from experiments.training import FLAGS, define_flags

if TYPE_CHECKING:
    from par_jax.loop import Result
    from par_jax.runs import Run


def end(result: "Result", workdir: Path) -> None:
    """Says how training ended; exits with 128 + the signal's number if one stopped it."""
    from par_jax import processes

    if result.signal is not None:
        if processes.leads():
            print(f"stopped at step {result.step}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + result.signal)
    processes.say(f"finished: {result.step} steps; the checkpoint is in {workdir}")


def main() -> None:
    """Trains what the flags ask for."""
    wanted = training.start()
    with training.writing(wanted.workdir):
        train(wanted)


def train(wanted: "Run") -> None:
    """Trains the stage that is asked for, and the frame VAE before it where there is none."""
    from par_jax import processes, runs, stages

    vae = training.vae_of(wanted)
    if FLAGS.stage == "vae":
        begins = Path(FLAGS.vae) if FLAGS.vae else None
        end(stages.train_vae(dataclasses.replace(vae, init=begins)), vae.workdir)
        return
    wanted = training.adopted(wanted)
    if not runs.is_trained(vae.workdir):
        processes.say(f"{vae.workdir} holds no trained frame VAE: training one first")
        end(stages.train_vae(vae), vae.workdir)
    end(stages.train_policy(wanted), wanted.workdir)


if __name__ == "__main__":
    define_flags()
    run(main)
