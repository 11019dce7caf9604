"""The physical step as compiled programs and weights, for machines that have jax and nothing of this package.

A folder holds `start.jaxexport` and `step.jaxexport` (StableHLO by `jax.export`), `weights.safetensors`, and
`policy.json`, which says what goes in and comes out. `experiments/run_exported.py` loads and calls them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.flax import save_file

from par_jax.acting import acting, acting_params
from par_jax.config import Config
from par_jax.data.pictures import crop
from par_jax.errors import UserError
from par_jax.language import instruction_tokens
from par_jax.nn.functional import Params
from par_jax.normalise import centre_and_half
from par_jax.policy import PhysicalStep
from par_jax.release import WEIGHTS, load_policy
from par_jax.trees import flatten, nest
from par_jax.types import KVCache
from par_jax.versions import versions
from par_jax.workdir import write_json

Arrays = dict[str, jax.Array]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
START, STEP, ABOUT = "start.jaxexport", "step.jaxexport", "policy.json"
PACKAGES = ("par_jax", "jax", "jaxlib")


def export(
    checkpoint: Path, out: Path, batch: int, platforms: Sequence[str], adjust: Any, task: str | None = None
) -> None:
    """Writes a trained policy's step.

    Args:
      checkpoint: a run's folder, or a released one.
      out: to be made.
      batch: robots that act together.
      platforms: of `PLATFORMS`; the programs run on any of them.
      adjust: Config -> Config, how it samples and computes.
      task: what it shall do; None where it was trained on a single one.

    Raises:
      UserError: there is no whole policy, the folder is not empty, a platform is unknown, or the task is.
    """
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UserError(f"unknown platform {unknown[0]!r}: choose of {', '.join(PLATFORMS)}")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --out")
    config, meta, params = load_policy(checkpoint)
    params, config = acting_params(config, params), acting(adjust(config))
    instruction = _instruction(meta, task, checkpoint)
    text = instruction_tokens(config.text, instruction, checkpoint)
    weights = _weights(config, params, text)
    start, step = functions(config, meta["statistics"])
    keys = jax.ShapeDtypeStruct((batch, 2), jnp.uint32)
    height, width = config.picture.size
    picture = jax.ShapeDtypeStruct((batch, height, width * len(config.picture.cameras), 3), jnp.uint8)
    state = jax.eval_shape(start, weights, keys)
    out.mkdir(parents=True, exist_ok=True)
    for name, function, arguments in ((START, start, (weights, keys)), (STEP, step, (weights, state, picture))):
        made = jax_export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
        (out / name).write_bytes(made.serialize())
    save_file(weights, out / WEIGHTS)
    write_json(out / ABOUT, _about(config, meta, instruction, batch, platforms, state))


def functions(config: Config, statistics: dict) -> tuple[Any, Any]:
    """`start(weights, keys [B, 2] uint32) -> state` and `step(weights, state, picture) -> (state, actions)`.

    Weights and state are flat dicts of arrays. The picture is uint8 [B, H, W, 3], what the cameras show, side by
    side; actions are float32 [B, L, A] in the controller's units, to be executed whole before the next step.
    """
    physical = PhysicalStep(config)
    centre, half = centre_and_half(statistics["low"], statistics["high"])

    def start(weights: Arrays, keys: jax.Array) -> Arrays:
        params = nest(weights)
        text = jnp.broadcast_to(params["text"], (keys.shape[0], *params["text"].shape))
        cache = physical.start(params, text)
        executed = jnp.zeros((keys.shape[0], config.model.chunk, config.model.action_dim))
        return {**flatten(cache), "executed": executed, "keys": keys}

    def step(weights: Arrays, state: Arrays, picture: jax.Array) -> tuple[Arrays, jax.Array]:
        cache = KVCache(**{field.name: state[field.name] for field in dataclasses.fields(KVCache)})
        both = jax.vmap(jax.random.split)(jax.random.wrap_key_data(state["keys"]))
        seen = crop(picture, config.picture)
        cache, actions, _, _ = physical.act(nest(weights), cache, seen, state["executed"], both[:, 1])
        state = {**flatten(cache), "executed": actions, "keys": jax.random.key_data(both[:, 0])}
        return state, actions * half + centre

    return start, step


def _instruction(meta: dict, task: str | None, folder: Path) -> str:
    """What the robot is told to do."""
    known = meta["tasks"]
    if task is None and len(known) > 1:
        raise UserError(f"{folder} knows {', '.join(known)}: say which it shall do by --task")
    if task is not None and task not in known:
        raise UserError(f"{folder} was trained on {', '.join(known)}: it cannot do --task={task}")
    return meta["instructions"][known.index(task or known[0])]


def _weights(config: Config, params: Params, text: np.ndarray) -> Arrays:
    """What acting reads."""
    whole = jax.tree.map(lambda leaf: jnp.asarray(leaf, config.train.dtype), params)
    return flatten(whole) | {"text": jnp.asarray(text)}


def _about(
    config: Config, meta: dict, instruction: str, batch: int, platforms: Sequence[str], state: Arrays
) -> dict[str, Any]:
    """What a caller has to know."""
    return {
        "task": meta["tasks"][meta["instructions"].index(instruction)],
        "instruction": instruction,
        "control_mode": meta["dataset"]["control_mode"],
        "cameras": list(config.picture.cameras),
        "camera_picture": list(config.picture.size),
        "batch": batch,
        "chunk": config.model.chunk,
        "action_dim": config.model.action_dim,
        "sampler": config.diffusion.chosen,
        "action_steps": config.diffusion.action_steps,
        "dtype": config.train.dtype,
        "platforms": list(platforms),
        "state": {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in state.items()},
        "step_of_training": meta["step"],
        "versions": versions(PACKAGES),
    }
