r"""The table: which tensor of a PyTorch NOVA goes to which parameter, and in which form. It is read both ways.

A rule pairs two templates. `{part}` stands for the same text on both sides, `{part:expression}` restricts it to a
regular expression, and `{layer}` is a number that only the torch name has: our array stacks the layers along its
first axis. Within one table exactly one rule matches each torch name, and one that is not `old` each of our paths.
"""

import dataclasses
import functools
import math
import re

_FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      name: template of the torch name.
      path: template of our name.
      form: how the two arrays differ; see `torch_shape`.
      old: a name that older programs gave the same tensor: read, never made up.
    """

    name: str
    path: str
    form: str = "same"
    old: bool = False

    @property
    def stacked(self) -> bool:
        """Whether our array has a leading axis of layers."""
        return "{layer}" in self.name


def _linear(name: str, path: str, form: str = "kernel", old: bool = False) -> tuple[Rule, Rule]:
    """A linear layer or a convolution."""
    return Rule(f"{name}.weight", f"{path}.kernel", form, old), Rule(f"{name}.bias", f"{path}.bias", "same", old)


def _norm(name: str, path: str) -> tuple[Rule, Rule]:
    return Rule(f"{name}.weight", f"{path}.scale"), Rule(f"{name}.bias", f"{path}.bias")


def _blocks(name: str, path: str) -> tuple[Rule, ...]:
    """NOVA's transformer blocks."""
    return (
        *_linear(rf"{name}.blocks.{{layer}}.{{part:attn\.(?:qkv|proj)|mlp\.fc[12]}}", f"{path}.stack.blocks.{{part}}"),
        *_norm(f"{name}.blocks.{{layer}}.{{part:norm[12]}}", f"{path}.stack.blocks.{{part}}"),
        *_norm(f"{name}.norm", f"{path}.norm"),
    )


TRANSFORMER = (
    Rule("text_embed.weight", "text_embed.position"),
    *_linear("text_embed.proj", "text_embed.proj"),
    *_norm("text_embed.norm", "text_embed.norm"),
    *_linear("motion_embed.{part:flow_proj|fps_proj}.0", "motion_embed.{part}.fc1"),
    *_linear("motion_embed.{part:flow_proj|fps_proj}.2", "motion_embed.{part}.fc2"),
    *_linear("video_pos_embed.time_proj.0", "video_position.time_proj.fc1"),
    *_linear("video_pos_embed.time_proj.2", "video_position.time_proj.fc2"),
    *_norm("video_pos_embed.norm", "video_position.norm"),
    Rule("mask_embed.bos_token", "begin", "token"),
    Rule("mask_embed.mask_token", "frame_encoder.mask_token", "token"),
    *_linear("video_encoder.patch_embed.proj", "patch_embed", "patch"),
    *_blocks("video_encoder", "video_encoder"),
    Rule("video_encoder.mixer.lora.weight", "mixer.lora.kernel", "kernel"),
    *_linear("video_encoder.mixer.proj", "mixer.proj"),
    *_linear("image_encoder.patch_embed.proj", "frame_encoder.patch_embed", "patch"),
    *_blocks("image_encoder", "frame_encoder"),
    *_linear("image_decoder.patch_embed.proj", "frame_head.patch_embed", "patch"),
    *_linear("image_decoder.time_cond_embed.timestep_proj.{part:fc[12]}", "frame_head.time_embed.timestep_proj.{part}"),
    *_linear("image_decoder.time_cond_embed.condition_proj.{part:fc[12]}", "frame_head.condition_proj.{part}"),
    *_linear("image_decoder.blocks.{layer}.norm1.proj", "frame_head.stack.blocks.modulation"),
    *_linear("image_decoder.blocks.{layer}.proj.{part:fc[12]}", "frame_head.stack.blocks.proj.{part}"),
    *_norm("image_decoder.blocks.{layer}.norm2", "frame_head.stack.blocks.norm2"),
    *_linear("image_decoder.norm.proj", "frame_head.modulation"),
    *_linear("image_decoder.head", "frame_head.head"),
)

VAE = (
    *_linear(r"{part:.*\.(?:conv(?:[12]|_in|_out|_shortcut)?|to_[qkv]|to_out\.0)|(?:post_)?quant_conv}", "{part}"),
    *_norm(r"{part:.*\.(?:norm[12]|conv_norm_out|group_norm)}", "{part}"),
    *(
        rule
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
        for rule in _linear(rf"{{at:.*\.attentions\.\d+}}.{old}", f"{{at}}.{new}", old=True)
    ),
)

TEXT_ENCODER = (
    Rule("model.embed_tokens.weight", "embed.embedding"),
    *_linear(r"model.layers.{layer}.{part:self_attn\.(?:[qkv]_proj|dense)|mlp\.fc[12]}", "stack.blocks.{part}"),
    *_norm("model.layers.{layer}.input_layernorm", "stack.blocks.input_layernorm"),
    *_norm("model.final_layernorm", "final_layernorm"),
    *_linear("lm_head", "lm_head"),
)

RULES = {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": TEXT_ENCODER}


def torch_shape(form: str, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """The shape in which PyTorch keeps one layer of a parameter.

    Args:
      form: "same"; "kernel": ours is [...taps, in, out], torch's [out, in, ...taps]; "patch": ours is [p * p * C, E],
        a patch's numbers being ordered by row, column, channel, torch's a convolution [E, C, p, p]; "token": ours is
        [E], torch's [1, E].
      shape: ours, without the axis of layers.
      channels: C of a patch.
    """
    if form == "kernel":
        return (shape[-1], shape[-2], *shape[:-2])
    if form == "patch":
        side = math.isqrt(shape[0] // channels) if channels else 0
        return (shape[1], channels, side, shape[0] // (channels * side) if side else 0)
    return (1, *shape) if form == "token" else shape


def torch_axes(form: str, axes: int) -> tuple[int, ...]:
    """Torch's `axes` axes in our order."""
    return (*range(2, axes), 1, 0) if form in ("kernel", "patch") else tuple(range(axes))


def match(rules: tuple[Rule, ...], name: str) -> list[tuple[Rule, str, int | None]]:
    """Every rule that matches a torch name, with our path and the layer; a sound table gives one."""
    found = []
    for rule in rules:
        matched = _pattern(rule.name, rule.name).fullmatch(name)
        if matched:
            parts = matched.groupdict()
            layer = int(parts["layer"]) if rule.stacked else None
            found.append((rule, _fill(rule.path, parts), layer))
    return found


def torch_names(rules: tuple[Rule, ...], path: str, layers: int) -> tuple[Rule, list[str]]:
    """The way back: the rule for one of our paths, and the torch names of its layers.

    Args:
      layers: length of the axis of layers, if the path has one.

    Raises:
      ValueError: the table has no rule or several for this path.
    """
    found = [
        (rule, matched.groupdict())
        for rule in rules
        if not rule.old and (matched := _pattern(rule.path, rule.name).fullmatch(path))
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules make {path}")
    rule, parts = found[0]
    numbers = range(layers) if rule.stacked else (None,)
    return rule, [_fill(rule.name, parts | {"layer": str(layer)}) for layer in numbers]


@functools.cache
def _pattern(template: str, fields: str) -> re.Pattern:
    """A template as a regular expression; what a field may be stands in the template `fields`."""
    allowed = {"layer": r"\d+"} | {name: expression for name, expression in _FIELD.findall(fields) if expression}
    parts = _FIELD.split(template)
    # The split alternates literal text, a field's name and its expression.
    texts, names = parts[::3], parts[1::3]
    fields_ = [f"(?P<{name}>{allowed.get(name, '.+')})" for name in names]
    return re.compile("".join(re.escape(text) + field for text, field in zip(texts, [*fields_, ""], strict=True)))


def _fill(template: str, parts: dict[str, str]) -> str:
    return _FIELD.sub(lambda field: parts[field[1]], template)
