"""experiments.finetune with the tests' small presets: `python -m tests.small_finetune --task=...`."""

import dataclasses

from experiments import finetune
from experiments.app import run
from par_jax.config import PRESETS
from tests.demos import SMALL

# It predicts actions alone, which compiles in half the time.
BLIND = dataclasses.replace(SMALL, name="blind-test", model=dataclasses.replace(SMALL.model, predict_frames=False))

if __name__ == "__main__":
    PRESETS |= {config.name: config for config in (SMALL, BLIND)}
    finetune.define_flags()
    run(finetune.main)
