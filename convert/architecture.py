"""Published configurations to ours, and whether the weights agree. The folder's name tells nothing.

What a configuration leaves out is what the publishing class makes of it: NOVA's classes for the transformer and the
VAEs, transformers' for Phi. A key that is not known here may change the model, so it is refused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.apply import Shaped
from convert.source import Source
from convert.values import Values, short
from par_jax.config import NovaConfig, PhiConfig, VAEConfig
from par_jax.errors import UserError
from par_jax.model.phi import ACTIVATIONS
from par_jax.model.text import TEXT_POSITIONS
from par_jax.model.vae import is_volumetric
from par_jax.nn.positions import rotary_sizes
from par_jax.pretrained import Architecture
from par_jax.schedulers import make_scheduler

_TRANSFORMER_CLASS = "NOVATransformer3DModel"
_VIDEO_VAE, _IMAGE_VAE = "AutoencoderKLOpenSora", "AutoencoderKL"
# Heads of the published widths; NOVA's configurations do not say.
_HEADS = {768: 12, 1024: 16, 1536: 16}
# NOVA's VAEs make groups of this number whatever the configuration says.
_GROUPS = 32
_TIMESTEPS_LIMIT = 10**6
# transformers' keys that do not change what an encoder computes.
_PHI_IDLE = {
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "resid_pdrop",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
Tensors = Mapping[str, Shaped]


def read_architecture(source: Source) -> Architecture:
    """The configurations of all components of a checkpoint, after its files and its weights.

    Raises:
      UserError: a key is unknown, lacks or has a value that cannot be converted, or contradicts the weights.
    """
    parts = {name: (Values(part.config, _where(source, name)), part) for name, part in source.components.items()}
    values, part = parts["transformer"]
    found = source.class_name("transformer")
    if found not in (_TRANSFORMER_CLASS, None):
        raise UserError(f"{values.where} is of class {found}, not {_TRANSFORMER_CLASS}")
    nova = transformer_config(values)
    _check(values.where, _transformer_facts(nova, part.tensors))
    values, part = parts["vae"]
    vae = vae_config(values, source.class_name("vae"))
    _check(values.where, _vae_facts(vae, part.tensors))
    phi = None
    if "text_encoder" in parts:
        values, part = parts["text_encoder"]
        phi = phi_config(values)
        _check(values.where, _phi_facts(phi, part.tensors))
    values, part = parts["scheduler"]
    scheduler = part.config | {"_class_name": source.class_name("scheduler")}
    return Architecture(nova, vae, phi, scheduler_config(values, scheduler))


def transformer_config(values: Values) -> NovaConfig:
    """`transformer/config.json`.

    Raises:
      UserError: as `read_architecture`.
    """
    where = values.where
    text_dim = values.take("text_token_dim", None)
    if text_dim is None:
        raise UserError(f"{where} has no text_token_dim: class-conditional models cannot be converted")
    if type(text_dim) is not int or not 1 <= text_dim < 2**31:
        raise values.wrong("text_token_dim", text_dim, "a number of at least 1")
    arch = values.words("arch")
    parts = [
        re.fullmatch(rf"{kind}_d([1-9]\d{{0,3}})w([1-9]\d{{0,5}})", name)
        for kind, name in zip(("vit", "vit", "mlp"), arch, strict=False)
    ]
    if len(arch) != 3 or not all(parts):
        raise values.wrong("arch", list(arch), "three names like vit_d16w1024, vit_d32w1024, mlp_d3w1280")
    (video_depth, width), (frame_depth, frame_width), head = (tuple(map(int, part.groups())) for part in parts if part)
    if width != frame_width:
        raise UserError(f"{where}: arch has transformers of widths {width} and {frame_width}, which must be the same")
    size = values.take("image_size")
    size = (size, size) if type(size) is int else Values({"image_size": size}, where).integers("image_size", 2)
    stride = values.integer("image_stride")
    frames, *grid = values.integers("video_base_size", 3)
    frame_grid = values.integers("image_base_size", 2)
    rank = values.take("video_mixer_rank", None)
    if rank is not None and (type(rank) is not int or abs(rank) > width):
        raise values.wrong("video_mixer_rank", rank, f"null or a number up to {width}")
    config = NovaConfig(
        width=width,
        heads=_heads(values, width),
        video_depth=video_depth,
        frame_depth=frame_depth,
        frame_head_width=head[1],
        frame_head_depth=head[0],
        latent_channels=values.integer("image_dim"),
        latent_size=(size[0] // stride, size[1] // stride),
        frame_patch=15 // stride + 1,
        text_dim=text_dim,
        text_tokens=values.integer("text_token_len"),
        video_base=(frames, grid[0], grid[1]),
        frame_base=(frame_grid[0], frame_grid[1]),
        rotary=values.flag("rotary_pos_embed", False),
        # NOVA takes no rank for no mixer, and a negative one for full rank.
        mixer_rank=max(rank, 0) if rank else None,
    )
    values.end()
    _check_grids(config, where)
    _check_positions(config, where)
    return config


def _heads(values: Values, width: int) -> int:
    given = values.take("num_heads", _HEADS.get(width))
    if given is None:
        raise UserError(
            f"{values.where} does not say how many heads a width of {width} has (published are those of "
            f"{', '.join(map(str, _HEADS))}): add num_heads"
        )
    if type(given) is not int or given < 1 or width % given:
        raise values.wrong("num_heads", given, f"a divisor of the width {width}")
    return given


def _check_grids(config: NovaConfig, where: Path | str) -> None:
    """The positions' grids must be those of the tokens: NOVA itself cannot run otherwise."""
    for key, base, patch in (
        ("video_base_size", config.video_base[1:], config.video_patch),
        ("image_base_size", config.frame_base, config.frame_patch),
    ):
        if tuple(side * patch for side in base) != config.latent_size:
            raise UserError(
                f"{where}: {key} has a grid of {base[0]} x {base[1]} tokens of {patch} latents a side, but image_size "
                f"and image_stride make {config.latent_size[0]} x {config.latent_size[1]} latents"
            )


def _check_positions(config: NovaConfig, where: Path | str) -> None:
    head = config.width // config.heads
    # Where NOVA's own split does not fit the head, ours is another one.
    if config.rotary and rotary_sizes(head)[0] != head // 8:
        raise UserError(f"{where}: heads of {head} numbers cannot be rotated in time, rows and columns")
    if not config.rotary and config.width % 4:
        raise UserError(f"{where}: a width of {config.width} has no absolute positions, being no multiple of 4")
    if config.text_tokens > TEXT_POSITIONS:
        raise UserError(f"{where}: text_token_len is {config.text_tokens}, more than NOVA's {TEXT_POSITIONS} positions")


def vae_config(values: Values, class_name: str) -> VAEConfig:
    """`vae/config.json` of either class.

    Raises:
      UserError: as `read_architecture`.
    """
    if class_name not in (_VIDEO_VAE, _IMAGE_VAE):
        raise UserError(f"{values.where} is of class {class_name}: only {_VIDEO_VAE} and {_IMAGE_VAE} can be converted")
    widths = values.integers("block_out_channels", default=(128, 256, 512, 512))
    down = values.words("down_block_types", ("DownEncoderBlock2D",) * 4)
    up = values.words("up_block_types", ("UpDecoderBlock2D",) * 4)
    if class_name == _IMAGE_VAE:
        # This class has 2D blocks whatever the configuration says.
        down, up = (("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths))
    if not len(widths) == len(down) == len(up):
        raise UserError(
            f"{values.where} has {len(widths)} block_out_channels, {len(down)} down_block_types and "
            f"{len(up)} up_block_types, which must be as many of each"
        )
    if any(width % _GROUPS for width in widths):
        raise values.wrong("block_out_channels", list(widths), f"multiples of {_GROUPS}, the norms' groups")
    shift = values.take("shift_factor", None)
    scale = values.number("scaling_factor", 0.18215)
    if scale == 0:
        raise values.wrong("scaling_factor", scale, "a number other than 0")
    config = VAEConfig(
        in_channels=values.integer("in_channels", 3),
        out_channels=values.integer("out_channels", 3),
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=values.integer("layers_per_block", 2),
        latent_channels=values.integer("latent_channels", 16),
        norm_num_groups=_GROUPS,
        scaling_factor=scale,
        shift_factor=0.0 if shift is None else Values({"shift_factor": shift}, values.where).number("shift_factor"),
        use_quant_conv=values.flag("use_quant_conv", True),
        use_post_quant_conv=values.flag("use_post_quant_conv", True),
    )
    for key, allowed in {
        "act_fn": ("silu", "swish"),
        "double_z": (True,),
        "latents_mean": (None,),
        "latents_std": (None,),
        "mid_block_add_attention": (True,),
    }.items():
        values.only(key, *allowed)
    values.ignore(("norm_num_groups", "sample_size", "force_upcast"))
    values.end()
    return config


def phi_config(values: Values) -> PhiConfig:
    """`text_encoder/config.json`.

    Raises:
      UserError: as `read_architecture`.
    """
    values.only("model_type", "phi")
    rope = values.take("rope_parameters", None)
    if rope is not None:
        # Where newer transformers keep what older ones have one level up.
        if not isinstance(rope, dict):
            raise values.wrong("rope_parameters", rope, "an object")
        rope = Values(rope, f"{values.where}, rope_parameters")
        rope.only("rope_type", "default")
    heads = values.integer("num_attention_heads", 32)
    width = values.integer("hidden_size", 2048)
    if width % heads:
        raise values.wrong("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    factor = (rope or values).number("partial_rotary_factor", 0.5)
    theta = (rope or values).number("rope_theta", 10000.0)
    rotary = int(factor * (width // heads))
    if not 0 < factor <= 1 or rotary < 2 or rotary % 2:
        raise values.wrong("partial_rotary_factor", factor, f"a share that is an even part of {width // heads}")
    if theta <= 0:
        raise values.wrong("rope_theta", theta, "greater than 0")
    epsilon = values.number("layer_norm_eps", 1e-5)
    if epsilon <= 0:
        raise values.wrong("layer_norm_eps", epsilon, "greater than 0")
    activation = values.take("hidden_act", "gelu_new")
    if activation not in list(ACTIVATIONS):
        raise UserError(
            f"{values.where}: hidden_act is {short(activation)}: only {', '.join(ACTIVATIONS)} can be converted"
        )
    config = PhiConfig(
        vocab_size=values.integer("vocab_size", 51200),
        hidden_size=width,
        intermediate_size=values.integer("intermediate_size", 8192),
        num_hidden_layers=values.integer("num_hidden_layers", 24),
        num_attention_heads=heads,
        max_position_embeddings=values.integer("max_position_embeddings", 2048),
        layer_norm_eps=epsilon,
        partial_rotary_factor=factor,
        rope_theta=theta,
        hidden_act=activation,
    )
    for key, allowed in {
        "num_key_value_heads": (None, heads),
        "qk_layernorm": (False,),
        "rope_scaling": (None,),
        "tie_word_embeddings": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
    }.items():
        values.only(key, *allowed)
    values.ignore(_PHI_IDLE)
    values.end()
    if rope is not None:
        rope.end()
    return config


def scheduler_config(values: Values, config: dict[str, Any]) -> dict[str, Any]:
    """`scheduler_config.json`, as it is, after a trial.

    Raises:
      UserError: the class, a key or a value is none that can be sampled with.
    """
    if values.integer("num_train_timesteps", 1000) > _TIMESTEPS_LIMIT:
        raise UserError(f"{values.where}: num_train_timesteps is above {_TIMESTEPS_LIMIT}")
    for key in ("shift", "beta_start", "beta_end"):
        values.number(key, 1.0)
    if type(values.take("steps_offset", 0)) is not int:
        raise UserError(f"{values.where}: steps_offset must be a number")
    try:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            sound = all(np.isfinite(table).all() for table in make_scheduler(config).tables())
    except UserError as error:
        raise UserError(f"{values.where}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{values.where} makes no noise schedule ({error})") from error
    if not sound:
        raise UserError(f"{values.where} makes no noise schedule: it is not finite")
    return config


# What a configuration says beside what the weights have, None where they do not tell.
_Facts = Iterable[tuple[str, Any, Any]]


def _check(where: Path | str, facts: _Facts) -> None:
    wrong = [f"{what} {said}, the weights have {found}" for what, said, found in facts if found not in (None, said)]
    if wrong:
        raise UserError(f"{where} contradicts the weights: {'; '.join(wrong)}")


def _size(tensors: Tensors, name: str, axis: int) -> int | None:
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else None


def _count(tensors: Tensors, prefix: str) -> int | None:
    """How many there are of `prefix`.0, `prefix`.1, ..."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return len(numbers) or None


def _transformer_facts(config: NovaConfig, tensors: Tensors) -> _Facts:
    video, frame, head = (
        f"{part}.patch_embed.proj.weight" for part in ("video_encoder", "image_encoder", "image_decoder")
    )
    yield "arch says video blocks:", config.video_depth, _count(tensors, "video_encoder.blocks")
    yield "arch says frame blocks:", config.frame_depth, _count(tensors, "image_encoder.blocks")
    yield "arch says diffusion blocks:", config.frame_head_depth, _count(tensors, "image_decoder.blocks")
    yield "arch says video width", config.width, _size(tensors, video, 0)
    yield "arch says frame width", config.width, _size(tensors, frame, 0)
    yield "arch says diffusion width", config.frame_head_width, _size(tensors, head, 0)
    yield "image_dim is", config.latent_channels, _size(tensors, frame, 1)
    yield "image_stride makes patches of side", config.frame_patch, _size(tensors, frame, 2)
    yield "image_stride makes video patches of side", config.video_patch, _size(tensors, video, 2)
    yield "text_token_dim is", config.text_dim, _size(tensors, "text_embed.proj.weight", 1)
    if not tensors:
        return
    yield "rotary_pos_embed is", config.rotary, not any(name.startswith("video_pos_embed.") for name in tensors)
    motion = any(name.startswith("motion_embed.") for name in tensors)
    yield "video_base_size makes a motion embedding:", config.motion, motion
    rank = None
    if any(name.startswith("video_encoder.mixer.") for name in tensors):
        rank = _size(tensors, "video_encoder.mixer.lora.weight", 0) or 0
    said, found = ("none" if one is None else one or "full" for one in (config.mixer_rank, rank))
    yield "video_mixer_rank makes a mixer of rank", said, found


def _vae_facts(config: VAEConfig, tensors: Tensors) -> _Facts:
    for side, count, depth in (
        ("encoder.down_blocks", len(config.block_out_channels), config.layers_per_block),
        ("decoder.up_blocks", len(config.block_out_channels), config.layers_per_block + 1),
    ):
        yield f"block_out_channels makes {side}:", count, _count(tensors, side)
        yield f"layers_per_block makes {side}.0.resnets:", depth, _count(tensors, f"{side}.0.resnets")
    for i, width in enumerate(config.block_out_channels):
        yield f"block_out_channels[{i}] is", width, _size(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0)
    for side, kinds in (("encoder.down_blocks", config.down_block_types), ("decoder.up_blocks", config.up_block_types)):
        for i, kind in enumerate(kinds):
            name = f"{side}.{i}.resnets.0.conv1.weight"
            axes = len(tensors[name].shape) - 2 if name in tensors else None
            yield f"{side}.{i} is {kind}, of axes", 3 if is_volumetric(kind) else 2, axes
    yield "in_channels is", config.in_channels, _size(tensors, "encoder.conv_in.weight", 1)
    yield "out_channels is", config.out_channels, _size(tensors, "decoder.conv_out.weight", 0)
    yield "latent_channels is", config.latent_channels, _size(tensors, "decoder.conv_in.weight", 1)
    yield "use_quant_conv is", config.use_quant_conv, "quant_conv.weight" in tensors
    yield "use_post_quant_conv is", config.use_post_quant_conv, "post_quant_conv.weight" in tensors


def _phi_facts(config: PhiConfig, tensors: Tensors) -> _Facts:
    yield "vocab_size is", config.vocab_size, _size(tensors, "model.embed_tokens.weight", 0)
    yield "hidden_size is", config.hidden_size, _size(tensors, "model.embed_tokens.weight", 1)
    yield "num_hidden_layers is", config.num_hidden_layers, _count(tensors, "model.layers")
    yield "intermediate_size is", config.intermediate_size, _size(tensors, "model.layers.0.mlp.fc1.weight", 0)


def _where(source: Source, component: str) -> Path:
    return source.components[component].files[0]
