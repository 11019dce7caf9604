"""Both papers' ablations, and other policies, as changes of a configuration: what `--variant` and `--policy` mean."""

import dataclasses
from typing import Any

from par_jax.config import Config
from par_jax.errors import UserError

# Name -> part of the configuration -> changes.
Table = dict[str, dict[str, dict[str, Any]]]

VARIANTS: Table = {
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

# What a policy without a video model's knowledge and without its aims is made of: it sees observations alone.
_PLAIN: dict[str, dict[str, Any]] = {
    "": {"pretrained": False},
    "model": {"predict_frames": False, "see_actions": False, "lookahead": 1},
    "lora": {"rank": 0},
}
# What PAR is compared with, made of its parts: the frozen frame VAE, the causal transformer and an action head.
POLICIES: Table = {
    "par": {},
    # BC-Transformer (Mandlekar et al. 2021): regression from past observations.
    "bct": {**_PLAIN, "model": {**_PLAIN["model"], "action_head": "mlp"}},
    # Diffusion Policy, its transformer (Chi et al. 2023): diffusion from two observations.
    "dp": {**_PLAIN, "model": {**_PLAIN["model"], "action_head": "dit", "context": 2}},
}

# What pretraining learns: frames after frames, without actions.
VIDEO: dict[str, dict[str, Any]] = {"model": {"predict_actions": False, "lookahead": 1}, "lora": {"rank": 0}}


def vary(config: Config, variant: str, policy: str = "par") -> Config:
    """A configuration as another policy's, and then as an ablation of it.

    Raises:
      UserError: there is no such policy or variant.
    """
    for kind, name, table in (("policy", policy, POLICIES), ("variant", variant, VARIANTS)):
        if name not in table:
            raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
        config = changed(config, table[name])
    return config


def changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    """A configuration with changes to its parts, and to itself under the name ""."""
    config = dataclasses.replace(config, **changes.get("", {}))
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in changes.items() if part}
    return dataclasses.replace(config, **parts)
