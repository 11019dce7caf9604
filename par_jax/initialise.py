"""PAR's parameters from trained ones, NOVA's (paper section 4.2) or an earlier run's: each lands by its name."""

import dataclasses
from typing import Any

import numpy as np

from par_jax.config import Config, NovaConfig
from par_jax.errors import UserError
from par_jax.trees import flatten, nest

# What PAR has no place for: it predicts from a first frame that is there, at a robot's own pace.
UNUSED = ("begin", "motion_embed", "mixer")
# What an ablation may lack as a whole.
OPTIONAL = ("video_encoder", "video_position", "frame_encoder", "frame_head")


@dataclasses.dataclass(frozen=True)
class Report:
    """Names of arrays, the parts joined with `/`.

    Attributes:
      taken: filled from what was given.
      new: freshly drawn.
      unused: given, without a place in the model.
    """

    taken: list[str]
    new: list[str]
    unused: list[str]


def fit(config: Config, nova: NovaConfig) -> Config:
    """PAR's configuration with the shapes of a NOVA checkpoint.

    Raises:
      UserError: PAR's pictures do not give the frames that NOVA was trained on.
    """
    if config.latent_size != nova.latent_size:
        stride = config.vae.stride
        wanted, found = (
            " x ".join(str(size * stride) for size in sizes) for sizes in (nova.latent_size, config.latent_size)
        )
        raise UserError(f"this NOVA sees pictures of {wanted} pixels, and preset {config.name!r} shows it {found}")
    model = dataclasses.replace(
        config.model,
        width=nova.width,
        heads=nova.heads,
        video_depth=nova.video_depth,
        frame_depth=nova.frame_depth,
        video_patch=nova.video_patch,
        frame_patch=nova.frame_patch,
        frame_head_width=nova.frame_head_width,
        frame_head_depth=nova.frame_head_depth,
        positions="rotary" if nova.rotary else "absolute",
    )
    text = dataclasses.replace(config.text, kind="phi", tokens=nova.text_tokens, dim=nova.text_dim)
    return dataclasses.replace(config, model=model, text=text)


def take(fresh: Any, given: Any) -> tuple[dict, Report]:
    """Replaces what is given.

    Args:
      fresh: PAR's parameters as drawn, nested dicts of arrays.
      given: NOVA's, as `par_jax.pretrained.load` gives them, or an earlier run's.

    Returns:
      PAR's parameters in the type of `fresh`, and what came from where.

    Raises:
      UserError: a given array has another shape than PAR's of the same name, or has no place though it should.
    """
    ours, theirs = flatten(fresh), flatten(given)
    parts = {name.split("/")[0] for name in ours}
    dropped = {*UNUSED, *(set(OPTIONAL) - parts)}
    wrong = [
        f"{name}: {tuple(theirs[name].shape)} != {tuple(ours[name].shape)}"
        for name in theirs
        if name in ours and theirs[name].shape != ours[name].shape
    ]
    unused = [name for name in theirs if name not in ours]
    wrong += [f"{name}: PAR has no such part" for name in unused if name.split("/")[0] not in dropped]
    if wrong:
        raise UserError(f"the weights to begin with do not fit the model (theirs != its): {'; '.join(wrong[:5])}")
    made = {name: np.asarray(theirs[name], leaf.dtype) if name in theirs else leaf for name, leaf in ours.items()}
    taken = [name for name in ours if name in theirs]
    return nest(made), Report(taken, [name for name in ours if name not in theirs], unused)


def summary(params: Any, report: Report) -> str:
    """A line for people: how many parameters were taken, and what is new."""
    leaves = flatten(params)

    def millions(names: list[str]) -> float:
        return sum(np.prod(leaves[name].shape) for name in names) / 1e6

    parts = sorted({name.split("/")[0] for name in report.new})
    new = f"new are {', '.join(parts)}: {millions(report.new):.1f}M" if parts else "none are new"
    return f"{len(report.taken)} arrays, {millions(report.taken):.1f}M parameters, come from the checkpoint; {new}"
