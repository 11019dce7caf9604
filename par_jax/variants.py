"""Both papers' ablations as changes of a configuration: what `--variant` means."""

import dataclasses
from typing import Any

from par_jax.config import Config
from par_jax.errors import UserError

# Name -> part of the configuration -> changes.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    # PAR's NoAR: the action head reads the embedded tokens; without a transformer there are no frames to predict.
    "no_transformer": {"model": {"transformer": False, "predict_frames": False, "lookahead": 1}, "lora": {"rank": 0}},
    # PhysGen's NoAR: sequences of one package.
    "no_history": {"model": {"context": 1, "lookahead": 1}, "train": {"packages": 1}},
    # PAR's Discrete: a discriminative de-tokenizer.
    "mlp": {"model": {"action_head": "mlp"}},
    # PhysGen's Discrete: actions quantised.
    "bins": {"model": {"action_head": "bins"}},
    # PhysGen's STP.
    "no_lookahead": {"model": {"lookahead": 1}},
    "no_frames": {"model": {"predict_frames": False}},
    # PhysGen's Zero: no pretrained transformer; the frame VAE and the text encoder stay.
    "from_scratch": {"": {"pretrained": False}, "lora": {"rank": 0}},
}


# What pretraining learns: frames after frames, without actions.
VIDEO: dict[str, dict[str, Any]] = {"model": {"predict_actions": False, "lookahead": 1}, "lora": {"rank": 0}}


def vary(config: Config, variant: str) -> Config:
    """A configuration's ablation.

    Raises:
      UserError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    return changed(config, VARIANTS[variant])


def changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """A configuration with changes to its parts, and to itself under the name ""."""
    config = dataclasses.replace(config, **changes.get("", {}))
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in changes.items() if part}
    return dataclasses.replace(config, **parts)
