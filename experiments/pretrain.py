"""Trains a policy's video path on videos: which frames follow which. No action is read.

python -m experiments.pretrain --preset=tiny --data=data/rollball-motion,data/pushcube --workdir=runs/video
python -m experiments.finetune --preset=tiny --task=pushcube --init=runs/video --workdir=runs/pushcube

Without a trained frame VAE (--vae, or workdir/vae) it trains that first. It goes on where the same command was stopped.
"""

from experiments import finetune, training
from experiments.app import run


def main() -> None:
    """Trains what the flags ask for."""
    wanted = training.start(of_videos=True)
    with training.writing(wanted.workdir):
        finetune.train(wanted)


if __name__ == "__main__":
    training.define_flags(videos=True)
    run(main)
