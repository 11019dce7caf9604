"""experiments.finetune with the tests' small preset: `python -m tests.small_finetune --task=...`."""

from experiments import finetune
from experiments.app import run
from par_jax.config import PRESETS
from tests.demos import SMALL

if __name__ == "__main__":
    PRESETS[SMALL.name] = SMALL
    finetune.define_flags()
    run(finetune.main)
