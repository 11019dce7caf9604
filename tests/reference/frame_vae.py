"""The frame VAE's encoder in PyTorch, for single pictures: causal kernels are summed over time when they are loaded.

(tests/reference/vae.py, written for proof and not for speed, convolves a picture with its own copies in time.)
"""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, fan_in, fan_out, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, fan_in, 1e-6), nn.Conv2d(fan_in, fan_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, fan_out, 1e-6), nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else None

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Attention(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        y = self.group_norm(x).flatten(2).mT
        o = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.to_out[0](o).mT.reshape(x.shape)


class Middle(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Down(nn.Module):
    def __init__(self, fan_in, fan_out, depth, groups, last):
        super().__init__()
        self.resnets = nn.ModuleList(Residual(fan_out if j else fan_in, fan_out, groups) for j in range(depth))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(fan_out)])

    def forward(self, x):
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """uint8 pictures to scaled latents; `config` as in a published vae/config.json, and ours beside it (`patch`)."""

    def __init__(self, config):
        super().__init__()
        widths, groups, self.config = config.block_out_channels, config.norm_num_groups, config
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Down(widths[max(i - 1, 0)], width, config.layers_per_block, groups, i + 1 == len(widths))
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, pictures):
        """uint8 [B, H, W, 3] -> [B, h, w, C]."""
        x = pictures.to(self.conv_in.weight.dtype) / 127.5 - 1
        x, patch = x.permute(0, 3, 1, 2), self.config.patch
        if patch > 1:  # squares of pixels become channels, colours innermost
            x = F.pixel_unshuffle(x, patch).unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)
        # Channels last in memory, which convolutions are fastest with.
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        mean = self.quant_conv(x).chunk(2, 1)[0].permute(0, 2, 3, 1)
        return (mean - self.config.shift_factor) * self.config.scaling_factor
