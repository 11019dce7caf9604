"""experiments.finetune with the tests' small presets: `python -m tests.small_finetune --task=...`."""

import dataclasses
from types import SimpleNamespace

from experiments import finetune
from experiments.app import run
from par_jax.config import PRESETS
from tests.demos import SMALL

OF_THE_STAGE = ("batch", "learning_rate", "dtype", "remat", "accumulate")
OF_MANY = ("mesh", "coordinator", "processes", "process")

# It predicts actions alone, which compiles in half the time.
BLIND = dataclasses.replace(SMALL, name="blind-test", model=dataclasses.replace(SMALL.model, predict_frames=False))


def flag_values(**changes: object) -> SimpleNamespace:
    """What a command's FLAGS hold when it is typed with the small preset and the flags given."""
    values = {
        "task": "pushcube",
        "preset": SMALL.name,
        "stage": "policy",
        "seed": 0,
        "log_every": 1,
        "checkpoint_every": 2,
        "eval_every": 6,
        "device": "auto",
        **dict.fromkeys(("init", "vae", "steps", "vae_steps", *OF_THE_STAGE, *OF_MANY)),
    }
    return SimpleNamespace(**values | changes)


if __name__ == "__main__":
    PRESETS |= {config.name: config for config in (SMALL, BLIND)}
    finetune.define_flags()
    run(finetune.main)
