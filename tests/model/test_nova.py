"""NOVA in Flax against tests/reference/nova.py, and that against recorded numbers of the public NOVA."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from convert import models, replay, rules
from convert.apply import apply
from par_jax.config import NovaConfig

torch = pytest.importorskip("torch")
from tests.reference import nova  # noqa: E402  (needs torch)

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden"
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
BASE = {
    "image_dim": 3,
    "image_stride": 8,
    "text_token_dim": 20,
    "text_token_len": 5,
    "video_mixer_rank": None,
    "rotary_pos_embed": False,
}
WIDE = {"image_size": [64, 96], "image_base_size": [4, 6]}
SQUARE = {"image_size": [64, 64], "image_base_size": [4, 4]}
INFO = {"diffusion_steps": 3, "loss_repeat": 2, "sets": 3}
# Transformer, scheduler, generation, and whether that starts from a given frame. Axes are of different lengths.
CASES = {
    "absolute": (
        BASE | WIDE | {"video_base_size": [5, 2, 3], "arch": ["vit_d3w48", "vit_d4w48", "mlp_d2w40"], "num_heads": 3},
        FLOW | {"shift": 3.0},
        INFO | {"frames": 3, "guidance_scale": 6.0, "guidance_renorm": 0.2, "min_guidance_scale": 2.0},
        False,
    ),
    "rotary, low rank": (
        BASE
        | WIDE
        | {"video_base_size": [5, 2, 3], "arch": ["vit_d2w48", "vit_d3w48", "mlp_d1w40"], "num_heads": 2}
        | {"rotary_pos_embed": True, "video_mixer_rank": 7},
        DDPM | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        INFO | {"frames": 3, "guidance_scale": 4.0, "image_guidance_scale": 1.5, "guidance_trunc": 500.0},
        True,
    ),
    "full rank, small patches": (
        BASE
        | SQUARE
        | {"image_stride": 16, "video_base_size": [2, 2, 2], "arch": ["vit_d1w24", "vit_d2w24", "mlp_d2w20"]}
        | {"num_heads": 1, "rotary_pos_embed": True, "video_mixer_rank": -1},
        DDPM | {"steps_offset": 1},
        INFO | {"frames": 2, "guidance_scale": 3.0},
        False,
    ),
    "image": (
        BASE | SQUARE | {"video_base_size": [1, 2, 2], "arch": ["vit_d2w24", "vit_d1w24", "mlp_d1w20"], "num_heads": 2},
        FLOW,
        INFO | {"frames": 1, "guidance_scale": 1.0, "flow_shift": 2.0},
        False,
    ),
}


def _config(values):
    """A NovaConfig, from what the reference makes of a published configuration."""
    s = nova.sizes(values)
    rank = values["video_mixer_rank"]
    return NovaConfig(
        width=s["width"],
        heads=s["heads"],
        video_depth=s["depth"]["video_encoder"],
        frame_depth=s["depth"]["image_encoder"],
        frame_head_width=s["head_width"],
        frame_head_depth=s["depth"]["image_decoder"],
        latent_channels=values["image_dim"],
        latent_size=s["latent"],
        frame_patch=s["patch"]["image_encoder"],
        text_dim=values["text_token_dim"],
        text_tokens=values["text_token_len"],
        video_base=tuple(values["video_base_size"]),
        frame_base=tuple(values["image_base_size"]),
        rotary=values["rotary_pos_embed"],
        mixer_rank=max(rank, 0) if rank else None,
    )


def _error(ours, wanted):
    ours, wanted = np.asarray(ours, np.float64), np.asarray(wanted, np.float64)
    assert ours.shape == wanted.shape
    return np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)


def _replayed(name, dtype=jnp.float32):
    """Each output's error, ours after what the reference recorded, and the limit."""
    values, scheduling, info, given = CASES[name]
    config = _config(values)
    state, io = nova.record(values, scheduling, info, given=given)
    arrays = {key: value.numpy() for key, value in state.items()}
    params = traverse_util.unflatten_dict(apply(rules.TRANSFORMER, arrays, models.shapes(config)), sep=".")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    io = replay.Recording({key: value.numpy() for key, value in io.items()}, "io.safetensors")
    with jax.default_matmul_precision("highest"):
        made = list(replay.transformer(config, scheduling, params, io, info))
    assert not io.unknown()
    return {one.name: (_error(one.ours, one.recorded), one.limit) for one in made}


@pytest.mark.parametrize("name", CASES)
def test_as_reference(name):
    errors = _replayed(name)
    assert {"train.decoder.out", "generate.out"} <= set(errors)
    assert not {name: error for name, (error, limit) in errors.items() if error > limit}


def test_bfloat16():
    errors = _replayed("image", jnp.bfloat16)
    assert not {name: error for name, (error, _) in errors.items() if error > 0.03}


@pytest.mark.parametrize("folder", ["t2v_tiny", "t2i_tiny"])
@torch.no_grad()
def test_reference_as_nova(folder):
    folder = GOLDEN / folder
    if not folder.is_dir():
        pytest.skip(f"the recorded numbers are not at {folder}")
    from safetensors.torch import load_file

    config, scheduling, info = (
        json.loads((folder / path).read_text())
        for path in ("transformer/config.json", "scheduler/scheduler_config.json", "io.json")
    )
    io = load_file(folder / "io.safetensors")
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shapes = {name: tensor.shape for name, tensor in nova.random_state(config).items()}
    assert shapes == {name: tensor.shape for name, tensor in state.items()}
    made, schedule = nova.Nova(config, state), nova.scheduler(scheduling)
    outs = {
        "text.out": made.text(made.prompts([io["text.prompt0"], io["text.prompt1"]])),
        "patchify.out": made.patches(io["patchify.in"]),
        "decoder.out": made.frame_head(io["decoder.x_t"], io["decoder.timestep"], io["decoder.z"]),
        "generate.pred_ids": io["generate.uniform"][0].argsort(1),
        "generate.out": made.generate(
            io["generate.c"],
            io["generate.null_c"],
            schedule,
            steps=info["diffusion_steps"],
            counts=io["generate.num_preds"].tolist(),
            order=io["generate.pred_ids"][..., 0],
            noise=io["generate.noise"],
            frames=info["frames"],
            step_noise=io.get("generate.step_noise", ()),
            guidance=nova.Guidance(info["guidance_scale"]),
        ),
    }
    if "motion.out" in io:
        outs["motion.out"] = made.motion(io["motion.flow"], io["motion.fps"])
    draws = (io[f"train.{name}"] for name in ("mask", "prev_ids", "noise", "timestep_index"))
    trained = made.train(io["latents"], io["train.c"], schedule, *draws)
    outs |= {f"train.{name}": value for name, value in trained.items()}
    recorded = {name for name in io if "out" in name.split(".") or "loss" in name or name.startswith("train.decoder")}
    assert recorded <= set(outs)
    errors = {name: _error(out, io[name]) for name, out in outs.items()}
    assert not {name: error for name, error in errors.items() if error > 1e-5}
