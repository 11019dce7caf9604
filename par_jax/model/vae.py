"""The frame VAE: NOVA's `AutoencoderKLOpenSora` and `AutoencoderKL`, after their public PyTorch source.

One class holds both: a block is 2D or 3D as `VAEConfig.down_block_types` and `up_block_types` say. Modules
and parameters carry the names of the published checkpoints (kernel for weight, scale for a norm's weight).

Axes: N pictures, B clips, T frames, T' latent frames, H x W pixels, h x w latents (h = H / config.stride), C
latent channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import VAEConfig
from par_jax.nn.attention import attend
from par_jax.nn.conv import Conv, GroupNorm, draw, upsample_linear, upsample_nearest
from par_jax.nn.layers import patchify, unpatchify

# Long clips pass in pieces that share one frame (one latent) with the piece before.
FRAMES_A_PIECE = 17
LATENTS_A_PIECE = 5
# Parts that make pictures of latents: a policy that predicts no frames has no use for them.
DECODER = ("decoder", "post_quant_conv")


class Dense(nnx.Module):
    """An affine map of the last axis; `kernel` is [in, out]."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(draw(rngs.params(), (features_in, features_out), features_in**-0.5))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """One head of attention among the positions of each frame."""

    def __init__(self, features: int, groups: int, *, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(features, groups)
        self.to_q, self.to_k, self.to_v = (Dense(features, features, rngs=rngs) for _ in range(3))
        self.to_out = nnx.List([Dense(features, features, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [..., h, w, C]."""
        y = self.group_norm(x)
        y = y.reshape(-1, x.shape[-3] * x.shape[-2], x.shape[-1])
        q, k, v = (project(y)[:, :, None] for project in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](attend(q, k, v)[:, :, 0]).reshape(x.shape)


class ResBlock(nnx.Module):
    """Two convolutions, each after a norm and a SiLU, beside a shortcut."""

    def __init__(self, features_in: int, features_out: int, groups: int, volumetric: bool, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(features_in, groups)
        self.conv1 = Conv(features_in, features_out, volumetric=volumetric, rngs=rngs)
        self.norm2 = GroupNorm(features_out, groups)
        self.conv2 = Conv(features_out, features_out, volumetric=volumetric, rngs=rngs)
        self.conv_shortcut = (
            Conv(features_in, features_out, 1, volumetric=volumetric, rngs=rngs)
            if features_in != features_out
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, in] -> [..., H, W, out]."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """Half the height and width; where `volumetric`, T frames become (T - 1) // 2 + 1."""

    def __init__(self, features: int, volumetric: bool, *, rngs: nnx.Rngs):
        self.conv = Conv(features, features, stride=2, padding=(0, 1), volumetric=volumetric, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, C] -> [..., H / 2, W / 2, C]; zeros are padded below and at the right only."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Twice the height and width; where `temporal`, T frames become 2T - 1.

    `temporal` interpolates linearly in all three axes; without it pixels are repeated and frames stay apart.
    """

    def __init__(self, features: int, volumetric: bool, temporal: bool, *, rngs: nnx.Rngs):
        self.temporal = temporal
        size = (3 if temporal else 1, 3, 3)
        self.conv = Conv(features, features, size, volumetric=volumetric, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, C] -> [..., 2H, 2W, C]."""
        return self.conv(upsample_linear(x) if self.temporal else upsample_nearest(x))


class MidBlock(nnx.Module):
    """Residual block, attention, residual block, at the latents' resolution."""

    def __init__(self, features: int, groups: int, volumetric: bool, *, rngs: nnx.Rngs):
        self.resnets = nnx.List(ResBlock(features, features, groups, volumetric, rngs=rngs) for _ in range(2))
        self.attentions = nnx.List([Attention(features, groups, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [..., h, w, C]."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nnx.Module):
    """Residual blocks, then half the resolution (`downsample`: None, or whether that layer is volumetric)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        depth: int,
        groups: int,
        volumetric: bool,
        downsample: bool | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.volumetric = volumetric
        self.resnets = nnx.List(
            ResBlock(features_out if j else features_in, features_out, groups, volumetric, rngs=rngs)
            for j in range(depth)
        )
        self.downsample = downsample
        layers = [] if downsample is None else [Downsample(features_out, downsample, rngs=rngs)]
        self.downsamplers = nnx.List(layers)

    def __call__(self, x: jax.Array, clip: tuple[int, ...]) -> jax.Array:
        """Maps pictures, or a clip; `clip` is (B, T) of what the encoder was given, (N,) for pictures."""
        x = _as_clip(x, clip) if self.volumetric else x
        for resnet in self.resnets:
            x = resnet(x)
        x = _as_clip(x, clip) if self.downsample else x
        for layer in self.downsamplers:
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks, then twice the resolution (`upsample`: None, or whether in time as well)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        depth: int,
        groups: int,
        volumetric: bool,
        upsample: bool | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.resnets = nnx.List(
            ResBlock(features_out if j else features_in, features_out, groups, volumetric, rngs=rngs)
            for j in range(depth)
        )
        layers = [] if upsample is None else [Upsample(features_out, volumetric, upsample, rngs=rngs)]
        self.upsamplers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, in] -> [..., 2H, 2W, out], or the same H and W in the last block."""
        for resnet in self.resnets:
            x = resnet(x)
        for layer in self.upsamplers:
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Pictures or clips to moments, before `quant_conv`."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        volumetric = [is_volumetric(name) for name in config.down_block_types]
        self.conv_in = Conv(config.in_channels * config.patch**2, widths[0], rngs=rngs)
        self.down_blocks = nnx.List(
            DownBlock(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                volumetric[i],
                volumetric[i + 1] if i + 1 < len(widths) else None,
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, volumetric[-1], rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, volumetric=volumetric[-1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N, h, w, 2C], or [B, T, H, W, 3] -> [B, T', h, w, 2C].

        The 2D blocks in front take a clip's frames as pictures: their norms see one frame at a time.
        """
        clip = x.shape[:-3]
        x = self.conv_in(x.reshape(-1, *x.shape[-3:]))
        for block in self.down_blocks:
            x = block(x, clip)
        x = self.mid_block(x)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        return x.reshape(*clip[:1], -1, *x.shape[-3:]) if len(clip) == 2 else x


class Decoder(nnx.Module):
    """Latents, after `post_quant_conv`, to pictures or clips."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        volumetric = [is_volumetric(name) for name in config.up_block_types]
        self.conv_in = Conv(config.latent_channels, widths[0], volumetric=volumetric[-1], rngs=rngs)
        self.mid_block = MidBlock(widths[0], groups, volumetric[-1], rngs=rngs)
        last = len(widths) - 1
        self.up_blocks = nnx.List(
            UpBlock(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                volumetric[i],
                # The last resize keeps the frames: time is doubled once less than height and width.
                None if i == last else volumetric[i] and i < last - 1,
                rngs=rngs,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], config.out_channels * config.patch**2, volumetric=volumetric[-1], rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, H, W, 3], or [B, T', h, w, C] -> [B, T, H, W, 3]."""
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(z)))


class VAE(nnx.Module):
    """Encoder and decoder with NOVA's conventions; all arrays are channel-last, pictures in -1..1.

    A clip is causal in time: T = 1 + s(T' - 1) frames, s = 4 at NOVA's four blocks of which two are 3D. It
    passes in pieces of 17 frames (5 latents) that share one with the piece before; frames after the last
    whole piece are dropped, as NOVA drops them, where the clip is longer than one piece.
    """

    def __init__(self, config: VAEConfig, *, decodes: bool = True, rngs: nnx.Rngs):
        """Draws the parameters, all float32.

        Args:
          config: of both halves.
          decodes: whether the parts that `DECODER` names are there.
          rngs: `params` is drawn from.

        Raises:
          ValueError: block types and widths differ in number, or a width is no multiple of the groups.
        """
        blocks = len(config.block_out_channels)
        if {len(config.down_block_types), len(config.up_block_types)} != {blocks}:
            raise ValueError(
                f"the VAE has {blocks} block_out_channels, {len(config.down_block_types)} down_block_types "
                f"and {len(config.up_block_types)} up_block_types: give as many of each"
            )
        if any(width % config.norm_num_groups for width in config.block_out_channels):
            raise ValueError(
                f"block_out_channels {config.block_out_channels} must be multiples of "
                f"norm_num_groups {config.norm_num_groups}"
            )
        self.config = config
        channels = config.latent_channels
        volumetric = is_volumetric(config.up_block_types[-1])
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs) if decodes else None
        self.quant_conv = (
            Conv(2 * channels, 2 * channels, 1, volumetric=volumetric, rngs=rngs) if config.use_quant_conv else None
        )
        if self.quant_conv is not None:
            # Latents are drawn with a small deviation at first, so that the decoder has something to learn from.
            self.quant_conv.bias[...] = jnp.repeat(jnp.asarray([0.0, -4.0]), channels)
        self.post_quant_conv = (
            Conv(channels, channels, 1, volumetric=volumetric, rngs=rngs)
            if decodes and config.use_post_quant_conv
            else None
        )

    def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the latents of one piece, without tiling.

        Args:
          x: [N, H, W, 3] pictures or [B, T, H, W, 3] clips, float.

        Returns:
          Two arrays [N, h, w, C] or [B, T', h, w, C]; the log-variance is clipped to -30..20.
        """
        z = self.encoder(_fold(x, self.config.patch))
        z = z if self.quant_conv is None else self.quant_conv(z)
        mean, logvar = jnp.split(z, 2, -1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of a clip's latents, unscaled.

        Args:
          x: [B, T, H, W, 3] float in -1..1; H and W are multiples of `config.stride`.

        Returns:
          Two arrays [B, T', h, w, C].
        """
        if x.shape[1] == 1:
            return tuple(part[:, None] for part in self.moments(x[:, 0]))
        pieces = [self.moments(x[:, at]) for at in self._pieces(x.shape[1], FRAMES_A_PIECE)]
        return tuple(_join(parts) for parts in zip(*pieces, strict=True))

    def decode(self, z: jax.Array) -> jax.Array:
        """Pictures of unscaled latents.

        Args:
          z: [B, T', h, w, C] float.

        Returns:
          [B, T, H, W, 3], about -1..1, not clipped.
        """
        if z.shape[1] == 1:
            return self._decode_piece(z[:, 0])[:, None]
        return _join([self._decode_piece(z[:, at]) for at in self._pieces(z.shape[1], LATENTS_A_PIECE)])

    def encode_frames(self, x: jax.Array) -> jax.Array:
        """Scaled latents of single pictures: the means [N, h, w, C] of x [N, H, W, 3] in -1..1."""
        return self.scale(self.moments(x)[0])

    def decode_frames(self, z: jax.Array) -> jax.Array:
        """Single pictures [N, H, W, 3], about -1..1, not clipped, of scaled latents [N, h, w, C]."""
        return self._decode_piece(self.unscale(z))

    def scale(self, z: jax.Array) -> jax.Array:
        """What the transformers see: (z - shift_factor) * scaling_factor, any shape."""
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def unscale(self, z: jax.Array) -> jax.Array:
        """The inverse of `scale`."""
        return z * (1 / self.config.scaling_factor) + self.config.shift_factor

    def _decode_piece(self, z: jax.Array) -> jax.Array:
        assert self.decoder is not None
        x = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return _unfold(x, self.config.patch)

    def _pieces(self, length: int, piece: int) -> list[slice]:
        if length <= piece or not is_volumetric(self.config.up_block_types[-1]):
            return [slice(0, length)]
        return [slice(at, at + piece) for at in range(0, length - piece + 1, piece - 1)]


def is_volumetric(block_type: str) -> bool:
    """Whether a block of this name, as in a checkpoint's config.json, convolves over time."""
    return "Block2D" not in block_type


def _fold(x: jax.Array, patch: int) -> jax.Array:
    """Squares of `patch` pixels a side to channels: [..., H, W, C] -> [..., H/p, W/p, p*p*C]."""
    *lead, height, width, _ = x.shape
    return patchify(x, patch).reshape(*lead, height // patch, width // patch, -1)


def _unfold(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `_fold`."""
    *lead, height, width, channels = x.shape
    return unpatchify(x.reshape(*lead, height * width, channels), patch, height * patch, width * patch)


def _as_clip(x: jax.Array, clip: tuple[int, ...]) -> jax.Array:
    return x.reshape(*clip, *x.shape[1:]) if x.ndim == 4 and len(clip) == 2 else x


def _join(pieces: Sequence[jax.Array]) -> jax.Array:
    """Pieces of a clip, one after the other; the first frame of each but the first is the overlap."""
    return jnp.concatenate([piece[:, 1:] if i else piece for i, piece in enumerate(pieces)], 1)
