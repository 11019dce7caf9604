"""A frame VAE's folder that nobody trained."""

from pathlib import Path

import jax
import numpy as np

from par_jax.config import Config, to_dict
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.runs import write_frozen
from tests.model.conftest import random_params


def make_vae(folder: Path, config: Config) -> Path:
    """Random parameters that say of themselves that their training is complete."""
    params = jax.tree.map(np.asarray, random_params(Functional(lambda rngs: VAE(config.vae, rngs=rngs))))
    write_frozen(folder, 0, params, {"config": to_dict(config), "stage": "vae", "complete": True})
    return folder
