"""What --device means, and where compiled programs are kept."""

import logging
from collections.abc import Callable
from pathlib import Path

import jax

from par_jax.errors import UserError


def choose(device: str, meet: Callable[[], None] = lambda: None) -> None:
    """Makes jax compute on `device`; call it before jax computes anything.

    Args:
      device: auto (jax's first choice), cpu or gpu.
      meet: joins other processes: after the choice of a platform, before jax looks for devices.

    Raises:
      UserError: an unknown name, or jax finds no GPU here.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise UserError(f"unknown device {device!r}: choose one of auto, cpu, gpu")
    logging.getLogger("jax").setLevel(logging.WARNING)  # it tells of every backend that is not there
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    meet()
    if device == "gpu":
        try:
            jax.config.update("jax_default_device", jax.local_devices(backend="gpu")[0])
        except RuntimeError as error:
            raise UserError(
                "jax finds no GPU on this machine: use --device=cpu, or install an NVIDIA driver and "
                f"`pip install 'jax[cuda13]=={jax.__version__}'`"
            ) from error


def keep_compiled(workdir: Path) -> None:
    """Keeps compiled programs in a run's folder, or in $JAX_COMPILATION_CACHE_DIR: what is typed again starts soon."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
