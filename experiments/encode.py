"""Does ahead of training all that it needs before its first step, with the flags of the training that follows.

python -m experiments.encode --task=pushcube --preset=par --data=data/pushcube --workdir=runs/pushcube --init=ckpt/nova

Puts the frame VAE, every picture's latents and the instruction's embeddings into the run's folder; goes on where it was
stopped. `python -m experiments.finetune` with the same flags then trains at once, on any number of machines.
"""

from experiments import training
from experiments.app import run
from experiments.training import FLAGS, define_flags
from par_jax.errors import UserError


def main() -> None:
    """Encodes what the flags ask for."""
    if FLAGS.stage != "policy":
        raise UserError("only a policy has something to encode ahead: leave out --stage")
    wanted = training.start()

    from par_jax import processes, runs, stages

    with training.writing(wanted.workdir):
        wanted = training.adopted(wanted)
        vae = training.vae_of(wanted).workdir
        if not runs.is_trained(vae):
            raise UserError(f"{vae} holds no trained frame VAE: give --vae or --init, or train one with finetune")
        windows = stages.encode(wanted)
    pictures = sum(len(latents) for latents in windows.latents)
    processes.say(
        f"{wanted.workdir} is ready: {pictures} pictures of {len(windows.actions)} demonstrations as latents; "
        "experiments.finetune with the same flags trains on them"
    )


if __name__ == "__main__":
    define_flags()
    run(main)
