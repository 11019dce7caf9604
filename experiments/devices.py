"""What --device means."""

import logging

import jax

from par_jax.errors import UserError


def choose(device: str) -> None:
    """Makes jax compute on `device`; call it before jax computes anything.

    Args:
      device: auto (jax's first choice), cpu or gpu.

    Raises:
      UserError: an unknown name, or jax finds no GPU here.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise UserError(f"unknown device {device!r}: choose one of auto, cpu, gpu")
    logging.getLogger("jax").setLevel(logging.WARNING)  # it tells of every backend that is not there
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if device == "gpu":
        try:
            jax.config.update("jax_default_device", jax.devices("gpu")[0])
        except RuntimeError as error:
            raise UserError(
                "jax finds no GPU on this machine: use --device=cpu, or install an NVIDIA driver and "
                f"`pip install 'jax[cuda13]=={jax.__version__}'`"
            ) from error
