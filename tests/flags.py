"""The model's flags as they are when nobody sets them, for commands that are called without parsing."""

_UNSET = ("lookahead", "lora_rank", "lora_alpha", "lora_targets", "cameras", "schedule", "sampler", "action_steps")
MODEL_FLAGS = {"preset": "tiny", "variant": "full", **dict.fromkeys(_UNSET)}
