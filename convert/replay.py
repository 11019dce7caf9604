"""Recorded inputs and random draws of the PyTorch NOVA, played again: what each part of a checkpoint gives for them.

A folder of recordings holds some of `io.safetensors` with `io.json` (the transformer), `vae_io.safetensors` and
`phi_io.safetensors`; shared/golden/README.md of the project tells their names. A part is replayed where its output
was recorded, from the recorded outputs of the parts before it, so that one part's error is not another's.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.config import NovaConfig, PhiConfig, VAEConfig
from par_jax.errors import UserError
from par_jax.generation import Draws, Generator, Plan
from par_jax.guidance import Guidance
from par_jax.model.nova import MOTION_FLOW, MOTION_FPS, NOVA
from par_jax.model.phi import Phi
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional, Params
from par_jax.nn.layers import patchify, unpatchify
from par_jax.schedulers import Scheduler, make_scheduler

# Largest relative L2 error: of one part, and of a whole generation.
PART, WHOLE = 1e-5, 1e-4
# The recording's names of guidance, as NOVA's pipeline calls its arguments.
_GUIDANCE = {
    "guidance_scale": "scale",
    "min_guidance_scale": "min_scale",
    "guidance_trunc": "truncation",
    "guidance_renorm": "renormalisation",
    "image_guidance_scale": "image_scale",
}
_INPUTS = re.compile(
    r"text\.prompt\d+|motion\.(flow|fps)|patchify\.in|decoder\.(z|x_t|timestep)|latents"
    r"|train\.(c|mask|prev_ids|noise|timestep_index)|generate\.(c|null_c|uniform|num_preds|noise|step_noise|latents)"
    r"|(image\.)?x|input_ids"
)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One output: what this checkpoint gives, what was recorded, and the largest error that passes."""

    name: str
    ours: np.ndarray
    recorded: np.ndarray
    limit: float


class Recording:
    """Recorded arrays by name; says which one is missing, and which outputs nobody replayed."""

    def __init__(self, arrays: Mapping[str, np.ndarray], file: str):
        self.arrays, self.file = arrays, file
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise UserError(f"{self.file} lacks {name!r}, which other outputs in it depend on: record it as well")
        self._read.add(name)
        return self.arrays[name]

    def unknown(self) -> list[str]:
        """Names that are neither inputs nor outputs that were replayed."""
        return sorted(name for name in self.arrays if name not in self._read and not _INPUTS.fullmatch(name))


def _last(x: np.ndarray, dtype: jnp.dtype) -> jax.Array:
    """PyTorch's second axis, channels, to the end."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1).astype(dtype)


def _first(x: jax.Array) -> np.ndarray:
    """The last axis to PyTorch's place for channels."""
    return np.moveaxis(np.asarray(x.astype(jnp.float32)), -1, 1)


def _plain(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32))


def _ids(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x[..., 0].astype(np.int32))


def transformer(config: NovaConfig, scheduler: dict, params: Params, io: Recording, info: dict) -> Iterator[Replayed]:
    """Every recorded output of the transformer; computes in the type of the parameters.

    Args:
      config: of the checkpoint.
      scheduler: its `scheduler_config.json`.
      params: its transformer.
      io: `io.safetensors`.
      info: `io.json`.

    Raises:
      UserError: an input is missing or does not fit the checkpoint.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    nova = Functional(lambda rngs: NOVA(config, rngs=rngs))
    schedule = make_scheduler(scheduler)

    def call(function: Callable, *args: jax.Array) -> jax.Array:
        return jax.jit(lambda params, *args: function(nova.bind(params), *args))(params, *args)

    if "patchify.out" in io:
        tokens = patchify(_last(io["patchify.in"], jnp.float32), config.frame_patch)
        yield Replayed("patchify.out", _plain(tokens), io["patchify.out"], 0.0)
    if "text.out" in io:
        prompts = _prompts(io, config, params).astype(dtype)
        out = call(lambda model, x: model.text_embed(x), prompts)
        yield Replayed("text.out", _plain(out), io["text.out"], PART)
    if "motion.out" in io:
        if not config.motion:
            raise UserError(f"{io.file} has a motion embedding, but the checkpoint makes images and has none")
        batch = len(io["motion.out"])
        values = [
            jnp.asarray(io[f"motion.{kind}"] if f"motion.{kind}" in io else np.full(batch, usual), jnp.float32)
            for kind, usual in (("flow", MOTION_FLOW), ("fps", MOTION_FPS))
        ]
        out = call(lambda model, *x: model.motion_embed(*x, dtype), *values)
        yield Replayed("motion.out", _plain(out), io["motion.out"], PART)
    if "decoder.out" in io:
        x = patchify(_last(io["decoder.x_t"], dtype), config.frame_patch)
        t = jnp.asarray(io["decoder.timestep"]).astype(jnp.float32)[:, None]
        out = call(lambda model, x, t, z: model.frame_head(x, t, z), x, t, jnp.asarray(io["decoder.z"], dtype))
        yield Replayed("decoder.out", _plain(out), io["decoder.out"], PART)
    if any(name.startswith("train.") and not _INPUTS.fullmatch(name) for name in io.arrays):
        yield from _training(config, schedule, call, io, info.get("loss_repeat", 4), dtype)
    if "generate.out" in io:
        yield from _generation(config, scheduler, params, io, info, dtype)


def _prompts(io: Recording, config: NovaConfig, params: Params) -> jax.Array:
    """Recorded embeddings, padded with the learned positions: [B, text_tokens, text_dim]."""
    position = np.asarray(params["text_embed"]["position"], np.float32)[: config.text_tokens]
    rows = []
    while f"text.prompt{len(rows)}" in io:
        prompt = io[f"text.prompt{len(rows)}"]
        if prompt.shape[1:] != position.shape[1:] or len(prompt) > len(position):
            raise UserError(f"{io.file}: prompts of shape {prompt.shape} do not fit the checkpoint's {position.shape}")
        rows.append(np.concatenate([prompt, position[len(prompt) :]]))
    return jnp.asarray(np.stack(rows))


def _training(
    config: NovaConfig, schedule: Scheduler, call: Callable, io: Recording, repeat: int, dtype: jnp.dtype
) -> Iterator[Replayed]:
    latents = _last(io["latents"], dtype)
    b, t = latents.shape[:2]
    if latents.shape[2:] != (*config.latent_size, config.latent_channels):
        raise UserError(f"{io.file}: frames of {latents.shape[2:]} do not fit the checkpoint's {config.latent_size}")
    tokens = patchify(latents.reshape(b * t, *latents.shape[2:]), config.frame_patch)
    text = jnp.asarray(io["train.c"], dtype)
    condition = call(lambda model, *x: model.encode_clip(*x), text, latents)
    if "train.video_encoder.out" in io:
        recorded = io["train.video_encoder.out"]
        yield Replayed("train.video_encoder.out", _plain(condition).reshape(recorded.shape), recorded, PART)
        condition = jnp.asarray(recorded, dtype).reshape(condition.shape)
    condition = call(lambda model, x: model.mixed(x), condition).reshape(b * t, -1, config.width)

    visible = _ids(io["train.prev_ids"])
    count = jnp.full(b * t, visible.shape[1])
    z = call(lambda model, *x: model.frame_encoder(*x), tokens, condition, visible, count)
    if "train.image_encoder.out" in io:
        yield Replayed("train.image_encoder.out", _plain(z), io["train.image_encoder.out"], PART)
        z = jnp.asarray(io["train.image_encoder.out"], dtype)

    noise, index = jnp.asarray(io["train.noise"], dtype), jnp.asarray(io["train.timestep_index"].astype(np.int32))
    x, z = jnp.tile(tokens, (repeat, 1, 1)), jnp.tile(z, (repeat, 1, 1))
    noised, timestep = schedule.noised(x, noise, index), schedule.timestep(index)
    if "train.decoder.x_t" in io:
        frames = unpatchify(noised, config.frame_patch, *config.latent_size)
        yield Replayed("train.decoder.x_t", _first(frames), io["train.decoder.x_t"], PART)
    if "train.decoder.timestep" in io:
        yield Replayed("train.decoder.timestep", _plain(timestep), io["train.decoder.timestep"], PART)
    out = call(lambda model, *x: model.frame_head(*x), noised, timestep, z)
    if "train.decoder.out" in io:
        yield Replayed("train.decoder.out", _plain(out), io["train.decoder.out"], PART)
        out = jnp.asarray(io["train.decoder.out"], dtype)

    error = jnp.square(out.astype(jnp.float32) - schedule.target(x, noise).astype(jnp.float32)).mean(-1)
    weight = jnp.tile(jnp.asarray(io["train.mask"][..., 0]), (repeat, 1))
    error = error * weight / (weight.sum() + 1e-5)
    by_frame = error.reshape(repeat * b, t, -1).sum((0, 2))
    losses = {"train.loss": by_frame.sum(), "train.loss_t2i": by_frame[0] * t}
    if t > 1:
        losses["train.loss_i2i"] = by_frame[1:].sum() * t / (t - 1)
    for name, loss in losses.items():
        if name in io:
            yield Replayed(name, _plain(loss), io[name], PART)


def _generation(
    config: NovaConfig, scheduler: dict, params: Params, io: Recording, info: dict, dtype: jnp.dtype
) -> Iterator[Replayed]:
    guidance = Guidance(**{ours: info[name] for name, ours in _GUIDANCE.items() if info.get(name) is not None})
    sizes = tuple(int(size) for size in io["generate.num_preds"] if size > 0)
    rows, columns = (size // config.frame_patch for size in config.latent_size)
    if sum(sizes) != rows * columns:
        raise UserError(f"{io.file}: sets of {sum(sizes)} tokens do not fit the checkpoint's {rows * columns} a frame")
    if "generate.uniform" in io:
        order = np.argsort(io["generate.uniform"][0, ..., 0], axis=1, kind="stable")
        yield Replayed("generate.pred_ids", order, io["generate.pred_ids"][..., 0], 0.0)
    plan = Plan(info["frames"], sizes, info["diffusion_steps"], guidance)
    generator = Generator(config, make_scheduler(scheduler, info.get("flow_shift")), plan)

    def by_set(name: str) -> jax.Array:
        return patchify(jnp.moveaxis(jnp.asarray(io[name]), 2, -1).astype(dtype), config.frame_patch)

    noise = by_set("generate.noise")
    # The first frame has no sets where it was given.
    skipped = plan.frames - len(noise) // len(sizes)
    noise = noise.reshape(-1, len(sizes), *noise.shape[1:])
    none = jnp.zeros((plan.steps, 1, 1, 1), dtype)
    if "generate.step_noise" in io:
        steps = by_set("generate.step_noise")
        steps = steps.reshape(*noise.shape[:2], -1, *noise.shape[2:])
        # PyTorch draws none for a step to time 0.
        steps = jnp.pad(steps, ((0, 0), (0, 0), (0, plan.steps - steps.shape[2]), *((0, 0),) * 3))
    draws = Draws(
        _ids(io["generate.pred_ids"]),
        lambda frame, part: noise[frame - skipped, part],
        lambda frame, part: steps[frame - skipped, part] if "generate.step_noise" in io else none,
    )
    text = jnp.asarray(io["generate.c"], dtype)
    empty = jnp.asarray(io["generate.null_c"], dtype) if guidance.passes > 1 else text
    given = _last(io["generate.out"][:, :, 0], dtype) if skipped else None
    frames = list(generator.run(params, guidance.expand_text(text, empty), draws, given))
    yield Replayed("generate.out", _first(jnp.stack(frames, axis=1)), io["generate.out"], WHOLE)


def vae(config: VAEConfig, params: Params, io: Recording) -> Iterator[Replayed]:
    """Every recorded output of the VAE: of a clip or of pictures, and of a single frame through a 3D VAE."""
    dtype = jax.tree.leaves(params)[0].dtype
    module = Functional(lambda rngs: VAE(config, rngs=rngs))

    def call(method: str, *args: jax.Array) -> Any:
        return jax.jit(lambda params, *args: getattr(module.bind(params), method)(*args))(params, *args)

    for prefix in ("", "image."):
        if f"{prefix}x" not in io:
            continue
        x = _last(io[f"{prefix}x"], dtype)
        pictures = x.ndim == 4  # one frame each: a clip's time axis comes and goes around the call
        mean, logvar = call("encode", x[:, None] if pictures else x)
        outputs = {
            "moments": jnp.concatenate([mean, logvar], axis=-1),
            "mean": mean,
            "scaled_latent": call("scale", mean),
        }
        for name, output in outputs.items():
            if prefix + name in io:
                output = output[:, 0] if pictures else output
                yield Replayed(prefix + name, _first(output), io[prefix + name], PART)
        if f"{prefix}decoded" in io:
            scaled = outputs["scaled_latent"]
            if f"{prefix}scaled_latent" in io:
                scaled = _last(io[f"{prefix}scaled_latent"], dtype).reshape(scaled.shape)
            decoded = call("decode", call("unscale", scaled))
            decoded = decoded[:, 0] if pictures else decoded
            yield Replayed(f"{prefix}decoded", _first(decoded), io[f"{prefix}decoded"], PART)


def phi(config: PhiConfig, params: Params, io: Recording) -> Iterator[Replayed]:
    """The text encoder's last hidden state."""
    module = Functional(lambda rngs: Phi(config, rngs=rngs))
    ids = jnp.asarray(io["input_ids"].astype(np.int32))
    out = jax.jit(lambda params, ids: module.bind(params)(ids))(params, ids)
    yield Replayed("last_hidden_state", _plain(out), io["last_hidden_state"], PART)
