"""Published configurations to ours: defaults, contradictions, and what is refused."""

import math

import numpy as np
import pytest

from convert.architecture import phi_config, read_architecture, transformer_config, vae_config
from convert.models import shapes
from convert.published import PRESETS
from convert.random_nova import published_shapes
from convert.source import open_source
from convert.tensors import Kind, read_safetensors, write_safetensors
from convert.values import Values
from par_jax.config import PhiConfig, VAEConfig
from par_jax.errors import UserError

TRANSFORMER = PRESETS["tiny"]["transformer"]
VIDEO_VAE = PRESETS["tiny"]["vae"]
PHI = PRESETS["tiny"]["text_encoder"]


def _values(config, **changes):
    return Values({key: value for key, value in (config | changes).items() if value is not ...}, "config.json")


def test_the_published_video_model():
    config = transformer_config(_values(PRESETS["nova-d48w1024-osp480"]["transformer"]))
    assert (config.width, config.heads, config.video_depth, config.frame_depth) == (1024, 16, 16, 32)
    assert (config.frame_head_width, config.frame_head_depth) == (1280, 3)
    assert (config.latent_size, config.frame_patch, config.video_patch) == ((60, 96), 2, 4)
    assert (config.video_base, config.frame_base, config.motion) == ((16, 15, 24), (30, 48), True)
    assert (config.text_dim, config.text_tokens, config.rotary, config.mixer_rank) == (2560, 256, False, None)


@pytest.mark.parametrize(
    ("name", "transformer", "vae"),
    [
        # Counted in state dicts of the public PyTorch classes, made without memory from the same configurations.
        ("nova-d48w1024-osp480", (643, 645_429_264), 239_189_991),
        ("nova-d48w1024-sd512", (659, 647_004_176), 83_653_863),
        ("nova-d48w768-sdxl1024", (659, 365_256_720), 83_653_863),
        ("nova-d48w1024-sdxl1024", (659, 647_004_176), 83_653_863),
        ("nova-d48w1536-sdxl1024", (659, 1_451_147_280), 83_653_863),
    ],
)
def test_every_published_size_is_accounted_for(name, transformer, vae):
    """Names and shapes from our modules' shapes; nothing of the size is made."""
    made = published_shapes("transformer", PRESETS[name]["transformer"])
    assert (len(made), sum(map(math.prod, made.values()))) == transformer
    assert ("motion_embed.flow_proj.0.weight" in made) == name.endswith("osp480")
    made = published_shapes("vae", PRESETS[name]["vae"])
    assert (len(made), sum(map(math.prod, made.values()))) == (248, vae)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 64, "video_base_size": [3, 2, 2], "image_base_size": [4, 4]}, {"latent_size": (8, 8)}),
        ({"image_stride": 16, "video_base_size": [3, 1, 2], "image_base_size": [2, 4]}, {"frame_patch": 1}),
        ({"video_mixer_rank": None}, {"mixer_rank": None}),
        ({"video_mixer_rank": 0}, {"mixer_rank": None}),
        ({"video_mixer_rank": -1}, {"mixer_rank": 0}),
        ({"video_mixer_rank": 24}, {"mixer_rank": 24}),
        ({"video_mixer_rank": ..., "rotary_pos_embed": ...}, {"mixer_rank": None, "rotary": False}),
        ({"arch": ["vit_d1w768", "vit_d2w768", "mlp_d1w8"], "num_heads": ...}, {"heads": 12, "video_depth": 1}),
        ({"arch": ["vit_d1w1536", "vit_d2w1536", "mlp_d1w8"], "num_heads": ...}, {"heads": 16}),
        ({"rotary_pos_embed": True, "num_heads": 1}, {"rotary": True, "heads": 1}),
        ({"_future": 3}, {}),
    ],
)
def test_transformer(changes, expected):
    config = transformer_config(_values(TRANSFORMER, **changes))
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_token_dim": None}, "class-conditional"),
        ({"text_token_dim": ...}, "class-conditional"),
        ({"arch": ...}, "lacks arch"),
        ({"arch": ["vit_d2w32"]}, "arch is .* three names"),
        ({"arch": ["vit_d2w32", "mlp_d2w32", "mlp_d2w32"]}, "three names"),
        ({"arch": ["vit_d0w32", "vit_d2w32", "mlp_d2w32"]}, "three names"),
        ({"arch": ["vit_d2w32", "vit_d2w64", "mlp_d2w32"]}, "widths 32 and 64"),
        ({"num_heads": ...}, "add num_heads"),
        ({"num_heads": 5}, "a divisor of the width 32"),
        ({"image_size": [32, 64, 1]}, "image_size is .* 2 numbers"),
        ({"image_size": "big"}, "image_size is 'big'"),
        ({"image_stride": 0}, "image_stride is 0"),
        ({"image_dim": True}, "image_dim is True"),
        ({"image_dim": 4.0}, "image_dim is 4.0"),
        ({"video_base_size": [2, 2]}, "3 numbers"),
        ({"video_base_size": [3, 2, 2]}, "video_base_size has a grid of 2 x 2 tokens of 4"),
        ({"image_base_size": [4, 2]}, "image_base_size has a grid of 4 x 2 tokens of 2"),
        ({"text_token_len": 513}, "more than NOVA's 512"),
        ({"rotary_pos_embed": 1}, "true or false"),
        ({"rotary_pos_embed": True}, "heads of 16 numbers cannot be rotated"),
        ({"video_mixer_rank": "low"}, "video_mixer_rank is 'low'"),
        ({"experts": 8, "attention": "linear"}, "does not know, .* attention, experts"),
    ],
)
def test_transformers_that_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        transformer_config(_values(TRANSFORMER, **changes))


def test_vae_defaults_are_the_classes():
    bare = Values({"latent_channels": 4}, "config.json")
    video = vae_config(bare, "AutoencoderKLOpenSora")
    assert video == VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215
    )
    assert vae_config(Values({}, "config.json"), "AutoencoderKL").latent_channels == 16
    # The image class is 2D and has 32 groups whatever is said.
    said = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock3D"] * 4, "norm_num_groups": 4}
    image = vae_config(Values(said | {"shift_factor": 0.5}, "config.json"), "AutoencoderKL")
    assert image.down_block_types == ("DownEncoderBlock2D",) * 2
    assert (image.norm_num_groups, image.shift_factor) == (32, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents_mean": [0.0]}, "latents_mean is"),
        ({"latents_std": [1.0]}, "latents_std is"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"double_z": False}, "double_z is False"),
        ({"block_out_channels": [32, 48, 32, 32]}, "multiples of 32"),
        ({"block_out_channels": [32, 32]}, "2 block_out_channels, 4 down_block_types"),
        ({"scaling_factor": float("nan")}, "finite"),
        ({"scaling_factor": 0}, "other than 0"),
        ({"shift_factor": "a"}, "finite"),
        ({"temporal_tiles": 3}, "does not know, .* temporal_tiles"),
    ],
)
def test_vaes_that_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        vae_config(_values(VIDEO_VAE, **changes), "AutoencoderKLOpenSora")


def test_vaes_of_other_classes():
    for name in ("AutoencoderKLCogVideoX", None):
        with pytest.raises(UserError, match=f"of class {name}: only"):
            vae_config(_values(VIDEO_VAE), name)


def test_phi():
    assert phi_config(_values(PRESETS["nova-d48w1024-osp480"]["text_encoder"])) == PhiConfig()
    # What is left out is transformers' default, which is not Phi-2.
    bare = phi_config(Values({}, "config.json"))
    assert (bare.hidden_size, bare.intermediate_size, bare.num_hidden_layers) == (2048, 8192, 24)
    assert (bare.num_attention_heads, bare.partial_rotary_factor) == (32, 0.5)
    older = {"rope_scaling": None, "tie_word_embeddings": False, "num_key_value_heads": 2, "torch_dtype": "float16"}
    newer = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        "rope_theta": ...,
        "partial_rotary_factor": ...,
    }
    assert phi_config(_values(PHI, **older)).rope_theta == 10000.0
    assert phi_config(_values(PHI, **newer)).rope_theta == 500.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qk_layernorm": True}, "qk_layernorm is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"model_type": "phi3"}, "model_type is 'phi3'"),
        ({"num_attention_heads": 3}, "a divisor of hidden_size"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor is 2.0"),
        ({"layer_norm_eps": 0}, "greater than 0"),
        ({"sliding_window": 4}, "does not know, .* sliding_window"),
    ],
)
def test_phis_that_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        phi_config(_values(PHI, **changes))


@pytest.mark.parametrize(
    ("component", "changes", "said"),
    [
        ("transformer", {"arch": ["vit_d3w32", "vit_d4w32", "mlp_d2w48"]}, "video blocks: 3, the weights have 2"),
        ("transformer", {"arch": ["vit_d2w64", "vit_d4w64", "mlp_d2w48"]}, "width 64, the weights have 32; .*"),
        ("transformer", {"arch": ["vit_d2w32", "vit_d4w32", "mlp_d1w64"]}, "diffusion blocks: 1.* diffusion width 64"),
        ("transformer", {"image_dim": 8}, "image_dim is 8, the weights have 4"),
        ("transformer", {"text_token_dim": 64}, "text_token_dim is 64, the weights have 32"),
        ("transformer", {"rotary_pos_embed": True, "num_heads": 1}, "rotary_pos_embed is True, the weights have False"),
        ("transformer", {"video_mixer_rank": 8}, "mixer of rank 8, the weights have none"),
        ("transformer", {"video_base_size": [1, 1, 2]}, "motion embedding: False, the weights have True"),
        ("transformer", {"_class_name": "Other"}, "contradicts model_index.json"),
        ("vae", {"block_out_channels": [32, 64, 32, 32]}, r"block_out_channels\[1\] is 64, the weights have 32"),
        ("vae", {"layers_per_block": 2}, "resnets: 2, the weights have 1"),
        ("vae", {"latent_channels": 16}, "latent_channels is 16, the weights have 4"),
        ("vae", {"down_block_types": ["DownEncoderBlock2D"] * 4}, "DownEncoderBlock2D, of axes 2, the weights have 3"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv is False, the weights have True"),
        ("text_encoder", {"num_hidden_layers": 3}, "num_hidden_layers is 3, the weights have 2"),
        ("text_encoder", {"vocab_size": 97, "intermediate_size": 3}, "vocab_size is 97, .*; intermediate_size is 3"),
    ],
)
def test_contradictions(copy, edit, component, changes, said):
    edit(copy / component / "config.json", **changes)
    with pytest.raises(UserError, match=said):
        read_architecture(open_source(str(copy)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "contradicts"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is above"),
        ({"num_train_timesteps": -1}, "num_train_timesteps is -1"),
        ({"shift": "fast"}, "shift is 'fast'"),
        ({"solver_order": 2}, "solver_order"),
    ],
)
def test_schedulers_that_are_refused(copy, edit, changes, said):
    edit(copy / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(UserError, match=said):
        read_architecture(open_source(str(copy)))


def test_no_name_tells_the_architecture(published, tmp_path):
    """A folder called after another checkpoint is read for what it holds."""
    (tmp_path / "nova-d48w1536-sdxl1024").symlink_to(published)
    assert read_architecture(open_source(str(tmp_path / "nova-d48w1536-sdxl1024"))).nova.width == 32


def test_shapes_of_rotary_and_mixers_differ():
    plain = set(shapes(transformer_config(_values(TRANSFORMER))))
    turned = set(shapes(transformer_config(_values(TRANSFORMER, rotary_pos_embed=True, num_heads=1))))
    mixed = set(shapes(transformer_config(_values(TRANSFORMER, video_mixer_rank=8))))
    assert {name.split(".")[0] for name in plain - turned} == {"video_position"}
    assert mixed - plain == {"mixer.lora.kernel", "mixer.proj.kernel", "mixer.proj.bias"}


def test_weights_of_an_extra_layer(copy):
    """What a configuration cannot say is the engine's to tell."""
    path = copy / "text_encoder" / "model.safetensors"
    tensors = {name: tensor[:] for name, tensor in read_safetensors(path).items()}
    tensors["model.layers.2.extra.weight"] = np.zeros(3, np.float32)
    kinds = {name: Kind(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(path, kinds, ((name, [tensor]) for name, tensor in tensors.items()))
    with pytest.raises(UserError, match="num_hidden_layers is 2, the weights have 3"):
        read_architecture(open_source(str(copy)))
