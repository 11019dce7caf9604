"""The model that acts, of one that was trained: adapters merged, and no part that acting does not read."""

import dataclasses

from par_jax import lora
from par_jax.config import Config
from par_jax.model.vae import DECODER
from par_jax.nn.functional import Params

# Parts of the policy and of its frame VAE that only predicted frames need.
FRAMES = {"par": ("frame_encoder", "frame_head"), "vae": DECODER}


def acting(config: Config, frames: bool = False) -> Config:
    """The configuration of the model that acts.

    Args:
      config: of the model as it is trained.
      frames: whether it shall predict frames as well, where it was trained to.
    """
    model = dataclasses.replace(config.model, predict_frames=frames and config.model.predict_frames)
    return dataclasses.replace(config, model=model, lora=dataclasses.replace(config.lora, rank=0))


def acting_params(config: Config, params: Params, frames: bool = False) -> Params:
    """The parameters of `acting(config, frames)`.

    Args:
      config: of the model as it is trained.
      params: its `{"par": ..., "vae": ...}`.
      frames: as `acting` takes it.
    """
    merged = lora.merge(params["par"], config.lora) if config.lora.rank else params["par"]
    whole = {"par": merged, "vae": params["vae"]}
    if frames and config.model.predict_frames:
        return whole
    return {
        half: {name: tree for name, tree in parts.items() if name not in FRAMES[half]} for half, parts in whole.items()
    }
