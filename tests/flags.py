"""Flags as they are when nobody sets them, for commands that are called without parsing."""

from types import SimpleNamespace

from experiments.training import SHARES
from tests.demos import SMALL

_UNSET = (
    "lookahead",
    "relative_actions",
    "one_scale",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "cameras",
    "schedule",
    "action_shift",
    "frame_shift",
    "context",
    "sampler",
    "action_steps",
    "frame_steps",
)
MODEL_FLAGS = {"preset": "tiny", "policy": "par", "variant": "full", **dict.fromkeys(_UNSET)}

ROLLOUT_FLAGS = {
    "seed": 0,
    "workers": 2,
    "videos": 1,
    "overwrite": False,
    "device": "auto",
    **dict.fromkeys(("out", "protocol", "episodes", "dtype", "context", "sampler", "action_steps", "frame_steps")),
}

_NUMBERS = ("steps", "batch", "accumulate", "learning_rate", "packages", "action_noise", "picture_shift", *SHARES)
_OF_A_STAGE = ("dtype", "optimizer", "remat", *_NUMBERS)
_OF_MANY_PROCESSES = ("mesh", "coordinator", "processes", "process")
TRAINING_FLAGS = {
    **MODEL_FLAGS,
    "stage": "policy",
    "keep_scale": False,
    "seed": 0,
    "log_every": 20,
    "checkpoint_every": 250,
    "eval_every": 500,
    "device": "auto",
    **dict.fromkeys(("init", "vae", "vae_steps", *_OF_A_STAGE, *_OF_MANY_PROCESSES)),
}


def training_flags(**changes: object) -> SimpleNamespace:
    """What FLAGS hold when a training of the small preset is asked for with the flags given."""
    given = {**TRAINING_FLAGS, "task": "pushcube", "data": None, "preset": SMALL.name, **changes}
    lists = {name: given[name] and str(given[name]).split(",") for name in ("task", "data")}
    return SimpleNamespace(**given | lists)
