"""Flags that change a preset's model: baselines, the papers' ablations, look-ahead, adapters, cameras, sampling."""

import dataclasses
from typing import Any

from absl import flags

from par_jax.config import PRESETS, Config
from par_jax.diffusion import SAMPLERS, check_sampler
from par_jax.errors import UserError
from par_jax.tasks import get_cameras
from par_jax.variants import VARIANTS, vary


def define_model_flags() -> None:
    """The flags of a model that is trained."""
    flags.DEFINE_string("preset", "tiny", f"One of {', '.join(PRESETS)}.")
    flags.DEFINE_string("policy", "par", "par; bct, a BC-Transformer; or dp, a Diffusion Policy; of the same parts.")
    flags.DEFINE_string("variant", "full", f"An ablation of the papers: {', '.join(VARIANTS)}.")
    flags.DEFINE_integer("lookahead", None, "Chunks that are denoised together.", lower_bound=1)
    flags.DEFINE_boolean("relative_actions", None, "Actions as differences from the last one; the preset's by default.")
    flags.DEFINE_boolean("one_scale", None, "One scale for all of the arm's numbers; the preset's by default.")
    flags.DEFINE_integer("lora_rank", None, "Rank of the adapters; 0 trains all weights.", lower_bound=0)
    flags.DEFINE_float("lora_alpha", None, "Adapters are scaled by this over their rank.", lower_bound=0.0)
    flags.DEFINE_string("lora_targets", None, "Regular expression, searched in the names of linear layers.")
    flags.DEFINE_string("cameras", None, "Cameras whose pictures are stitched, as in render,hand.")
    flags.DEFINE_string("schedule", None, f"Noise schedule of training: {' or '.join(SAMPLERS)}.")
    flags.DEFINE_float(
        "action_shift", None, "How far a chunk's denoising times are moved towards noise; 1: not.", lower_bound=1.0
    )
    flags.DEFINE_float(
        "frame_shift", None, "How far a frame's denoising times are moved towards noise; 1: not.", lower_bound=1.0
    )
    define_sampling_flags()
    define_frame_flags()


def define_sampling_flags() -> None:
    """The flags of a model that acts."""
    flags.DEFINE_integer(
        "context", None, "Packages that the model looks back on, its own included; 1: no past.", lower_bound=1
    )
    flags.DEFINE_string("sampler", None, "flow, ddpm or ddim; the schedule's own by default.")
    flags.DEFINE_integer(
        "action_steps", None, "Denoising steps of a chunk of actions.", lower_bound=1, upper_bound=1000
    )


def define_frame_flags() -> None:
    """The flags of a model that shows the frames that it predicts."""
    flags.DEFINE_integer(
        "frame_steps", None, "Denoising steps of each set of a frame's tokens.", lower_bound=1, upper_bound=1000
    )


def preset(values: Any) -> Config:
    """The preset with the flags' changes to its model.

    Args:
      values: the command's flags.

    Raises:
      UserError: an unknown preset, policy, variant, camera, schedule or sampler.
    """
    if values.preset not in PRESETS:
        raise UserError(f"unknown preset {values.preset!r}: choose one of {', '.join(PRESETS)}")
    config = PRESETS[values.preset]
    told = {"relative_actions": values.relative_actions, "one_scale": values.one_scale}
    config = _changed(config, "model", lookahead=values.lookahead, **told)
    config = _changed(config, "lora", rank=values.lora_rank, alpha=values.lora_alpha, targets=values.lora_targets)
    config = _changed(config, "picture", cameras=values.cameras and get_cameras(values.cameras))
    shifts = {"action_shift": values.action_shift, "frame_shift": values.frame_shift}
    config = _changed(config, "diffusion", schedule=values.schedule, **shifts)
    return vary(sampled(framed(config, values), values), values.variant, values.policy)


def sampled(config: Config, values: Any) -> Config:
    """A configuration with the flags' changes to what it looks back on and to its sampling.

    Args:
      config: to change.
      values: the command's flags.

    Raises:
      UserError: the sampler is not one of what the model was trained for.
    """
    config = _changed(config, "model", context=values.context)
    config = _changed(config, "diffusion", sampler=values.sampler, action_steps=values.action_steps)
    made = config.diffusion
    check_sampler(made.schedule, made.sampler, action_shift=made.action_shift, frame_shift=made.frame_shift)
    return config


def framed(config: Config, values: Any) -> Config:
    """A configuration with the flags' changes to how frames are predicted.

    Args:
      config: to change.
      values: the command's flags.
    """
    return _changed(config, "diffusion", frame_steps=values.frame_steps)


def adjusted(config: Config, values: Any) -> Config:
    """A checkpoint's configuration with the flags' changes to how it acts.

    Args:
      config: of the trained model.
      values: the command's flags, `dtype` among them.

    Raises:
      UserError: the sampler is not one of what the model was trained for, or it was trained to look back on less.
    """
    if values.context is not None and values.context > config.model.context:
        raise UserError(
            f"--context={values.context}: this policy was trained to look back on {config.model.context} packages: "
            "give as many or less"
        )
    config = sampled(config, values)
    return _changed(config, "train", dtype=values.dtype)


def _changed(config: Config, part: str, **changes: object) -> Config:
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **given)})
