"""Names and shapes of the Flax models' parameters, without making any."""

import functools
from typing import Any

from flax import nnx

from par_jax.config import NovaConfig, PhiConfig, VAEConfig
from par_jax.errors import UserError
from par_jax.model.nova import NOVA
from par_jax.model.phi import Phi
from par_jax.model.vae import VAE

_CLASSES: dict[type, Any] = {NovaConfig: NOVA, VAEConfig: VAE, PhiConfig: Phi}


@functools.cache
def shapes(config: NovaConfig | VAEConfig | PhiConfig) -> dict[str, tuple[int, ...]]:
    """Our path -> shape of every parameter that the configuration's model has.

    Raises:
      UserError: the model cannot be built so.
    """
    try:
        module = nnx.eval_shape(lambda: _CLASSES[type(config)](config, rngs=nnx.Rngs(0)))
    except ValueError as error:
        raise UserError(str(error)) from error
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): tuple(param.shape) for path, param in state}
