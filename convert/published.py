"""Writes components in the published layout, and knows the published configurations."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.source import FILES
from convert.tensors import Kind, write_safetensors
from par_jax.workdir import write_json


def write_component(
    folder: Path,
    name: str,
    config: dict[str, Any],
    kinds: Mapping[str, Kind] | None = None,
    tensors: Iterable[tuple[str, Iterable[np.ndarray]]] = (),
) -> None:
    """Writes one sub-folder.

    Args:
      folder: the checkpoint's.
      name: one of `convert.source.FILES`.
      config: content of the configuration's file.
      kinds: of the tensors; None for a component without weights.
      tensors: as `write_safetensors` takes them.
    """
    config_name, stem = FILES[name]
    (folder / name).mkdir()
    write_json(folder / name / config_name, config)
    if kinds is not None:
        write_safetensors(folder / name / f"{stem}.safetensors", kinds, tensors)


def _transformer(
    width: int,
    head: str,
    image_size: int | list[int],
    grid: list[int],
    frames: int = 1,
    text: tuple[int, int] = (2560, 256),
    depths: tuple[int, int] = (16, 32),
) -> dict[str, Any]:
    return {
        "_class_name": "NOVATransformer3DModel",
        "image_dim": 4,
        "image_size": image_size,
        "image_stride": 8,
        "text_token_dim": text[0],
        "text_token_len": text[1],
        "image_base_size": [2 * side for side in grid],
        "video_base_size": [frames, *grid],
        "video_mixer_rank": None,
        "rotary_pos_embed": False,
        "arch": [f"vit_d{depths[0]}w{width}", f"vit_d{depths[1]}w{width}", head],
    }


def _image_vae(scale: float) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": scale,
    }


_VIDEO_VAE = {
    "_class_name": "AutoencoderKLOpenSora",
    "down_block_types": ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2,
    "up_block_types": ["UpDecoderBlock3D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_PHI2 = {
    "architectures": ["PhiEncoderModel"],
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-05,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
}
_TINY_PHI = _PHI2 | {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "partial_rotary_factor": 0.5,
}
_FLOW = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}


def _preset(transformer: dict[str, Any], vae: dict[str, Any], text_encoder: dict[str, Any] = _PHI2) -> dict[str, Any]:
    return {"transformer": transformer, "vae": vae, "text_encoder": text_encoder, "scheduler": _FLOW}


# Transformers: NOVA's training configurations (configs/*.yaml), which have none for sd512; that is the 1024's at
# half the size. The VAEs' and the scheduler's numbers are those of the models that they are named after: they
# set no parameter's shape.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "nova-d48w1024-osp480": _preset(_transformer(1024, "mlp_d3w1280", [480, 768], [15, 24], 16), _VIDEO_VAE),
    "nova-d48w1024-sd512": _preset(_transformer(1024, "mlp_d6w1024", 512, [16, 16]), _image_vae(0.18215)),
    "nova-d48w768-sdxl1024": _preset(_transformer(768, "mlp_d6w768", 1024, [32, 32]), _image_vae(0.13025)),
    "nova-d48w1024-sdxl1024": _preset(_transformer(1024, "mlp_d6w1024", 1024, [32, 32]), _image_vae(0.13025)),
    "nova-d48w1536-sdxl1024": _preset(_transformer(1536, "mlp_d6w1536", 1024, [32, 32]), _image_vae(0.13025)),
    "tiny": _preset(
        _transformer(32, "mlp_d2w48", [32, 64], [1, 2], 3, (32, 4), (2, 4)) | {"num_heads": 2},
        _VIDEO_VAE | {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
        _TINY_PHI,
    ),
}
_MODULES = {
    "FlowMatchEulerDiscreteScheduler": "diffusers",
    "PhiEncoderModel": "diffnext.models.text_encoders.phi",
    "NOVATransformer3DModel": "diffnext.models.transformers.transformer_nova",
    "AutoencoderKL": "diffnext.models.autoencoders.autoencoder_kl",
    "AutoencoderKLOpenSora": "diffnext.models.autoencoders.autoencoder_kl_opensora",
}


def model_index(configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Content of `model_index.json` for components with these configurations."""
    classes = {name: config.get("_class_name", "PhiEncoderModel") for name, config in configs.items()}
    return {"_class_name": "NOVAPipeline"} | {name: [_MODULES[kind], kind] for name, kind in classes.items()}
