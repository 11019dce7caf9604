"""A policy's parameters to act with: of a trained run's folder, or of a released one, small enough to be handed on.

A released folder holds `config.json`, as a run's, but for what only training needs; `weights.safetensors` in bfloat16;
and `instruction.npz` where a language model read the instruction. The repository keeps some in `checkpoints/`.
"""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from par_jax import config as config_lib
from par_jax.acting import acting, acting_params
from par_jax.checkpoint import load_params
from par_jax.config import Config
from par_jax.errors import UserError
from par_jax.language import FILE
from par_jax.nn.functional import Params
from par_jax.trees import checksum, flatten, nest
from par_jax.workdir import RELEASED, config_of, read_meta, write_json

WEIGHTS = "weights.safetensors"
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
# What `config.json` of a run says of its training's files, and what a rollout asks of its data.
DROPPED = ("init", "vae")
KEPT_OF_DATA = ("control_mode", "picture_size", "cameras")


def load_policy(folder: Path | str) -> tuple[Config, dict, Params]:
    """A policy of a trained run, with its averaged parameters, or of a released folder.

    Returns:
      (config, meta, params): the `Config`; the whole `config.json` with `step`; `{"par": ..., "vae": ...}`, nested
      dicts of numpy arrays, float32 but for what adapters leave frozen.

    Raises:
      UserError: there is no whole policy, or it is of another program version.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if RELEASED in meta:
        return config_of(meta, folder), meta, nest(_read(folder, meta[RELEASED]["checksum"]))
    if meta["stage"] != "policy":
        raise UserError(f"{folder} holds a {meta['stage']}, not a policy: give the policy's --workdir")
    config, meta, par = load_params(folder)
    return config, meta, {"par": par, "vae": load_params(folder / "vae")[2]}


def release(run: Path, out: Path, frames: bool = False) -> None:
    """Writes a trained run's policy as a released folder.

    Args:
      run: its folder.
      out: to be made.
      frames: whether it shall predict frames too, not only act.

    Raises:
      UserError: there is no whole policy, it predicts no frames, or the folder is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --out")
    config, meta, params = load_policy(run)
    if RELEASED in meta:
        raise UserError(f"{run} is released already: copy it, or give the --workdir of a trained run")
    if frames and not config.model.predict_frames:
        raise UserError(f"{run} was trained without predicting frames: leave out --frames")
    arrays = {
        name: np.asarray(leaf, jnp.bfloat16) for name, leaf in flatten(acting_params(config, params, frames)).items()
    }
    meta = {name: value for name, value in meta.items() if name not in DROPPED} | {
        "config": config_lib.to_dict(acting(config, frames)),
        "dataset": {name: meta["dataset"][name] for name in KEPT_OF_DATA if name in meta["dataset"]},
        RELEASED: {"checksum": _sum(arrays)},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out / WEIGHTS)
    if (run / FILE).exists():
        shutil.copy(run / FILE, out / FILE)
    write_json(out / "config.json", meta)


def _read(folder: Path, expected: int) -> dict[str, np.ndarray]:
    """A released folder's weights by name, float32."""
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{path} is missing: the folder is not whole, copy it again or release its run again")
    try:
        arrays = {name: np.asarray(leaf) for name, leaf in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(f"{path} is damaged ({reason}): copy it again, or release its run again") from error
    if _sum(arrays) != expected:
        raise UserError(f"{path} is damaged (its checksum is wrong): copy it again, or release its run again")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _sum(arrays: dict[str, np.ndarray]) -> int:
    return sum(map(checksum, arrays.values())) % 2**64
