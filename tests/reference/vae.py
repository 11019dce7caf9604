"""NOVA's VAE in PyTorch, as functions of a dict of tensors under the published names.

An independent statement of the architecture: it shares no code and no table with par_jax or convert, so that
parity holds where the recorded numbers are absent. Axes are torch's: pictures [b, c, h, w], clips [b, c, t, h, w].
"""

import torch
import torch.nn.functional as F


class Reference:
    """Both VAEs; `config` is the dict of a published config.json, `weights` are drawn if none are given."""

    def __init__(self, config, weights=None, seed=0):
        self.widths = list(config["block_out_channels"])
        count = len(self.widths)
        self.depth = config["layers_per_block"]
        self.latents = config["latent_channels"]
        self.groups = config.get("norm_num_groups", 32)
        self.down3d = ["3D" in name for name in config.get("down_block_types", ["2D"] * count)]
        self.up3d = ["3D" in name for name in config.get("up_block_types", ["2D"] * count)]
        self.weights = {} if weights is None else {k: torch.as_tensor(v) for k, v in weights.items()}
        self.used = set()
        self.drawn = torch.Generator().manual_seed(seed) if weights is None else None

    def _get(self, name, *shape):
        if self.drawn is not None and name not in self.weights:
            tensor = torch.randn(shape, generator=self.drawn)
            fan_in = max(tensor[0].numel(), 1) if len(shape) > 1 else 25
            offset = 1.0 if len(shape) == 1 and "norm" in name and name.endswith("weight") else 0.0
            self.weights[name] = tensor * fan_in**-0.5 + offset
        self.used.add(name)
        assert self.weights[name].shape == shape, name
        return self.weights[name]

    def _conv(self, name, x, width, taps=3, is_3d=False, stride=1, pad=None):
        taps = (taps,) * 3 if isinstance(taps, int) else taps
        taps = taps if is_3d else taps[1:]
        weight = self._get(f"{name}.weight", width, x.shape[1], *taps)
        bias = self._get(f"{name}.bias", width)
        before, after = (taps[-1] // 2,) * 2 if pad is None else pad
        x = F.pad(x, (before, after) * 2)
        if not is_3d:
            return F.conv2d(x, weight, bias, stride)
        past = x[:, :, :1].repeat(1, 1, taps[0] - 1, 1, 1)
        return F.conv3d(torch.cat((past, x), 2), weight, bias, stride)

    def _norm(self, name, x):
        scale, bias = (self._get(f"{name}.{part}", x.shape[1]) for part in ("weight", "bias"))
        return F.group_norm(x, self.groups, scale, bias, 1e-6)

    def _residual(self, name, x, width, is_3d):
        y = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)), width, is_3d=is_3d)
        y = self._conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", y)), width, is_3d=is_3d)
        if x.shape[1] != width:
            x = self._conv(f"{name}.conv_shortcut", x, width, 1, is_3d)
        return x + y

    def _attend(self, name, x):
        y = self._norm(f"{name}.group_norm", x)
        frames = [y] if y.ndim == 4 else y.unbind(2)
        outs = []
        for frame in frames:
            tokens = frame.flatten(2).mT
            width = tokens.shape[-1]
            q, k, v, out = (
                (self._get(f"{name}.{part}.weight", width, width), self._get(f"{name}.{part}.bias", width))
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            )
            shares = (F.linear(tokens, *q) @ F.linear(tokens, *k).mT * width**-0.5).softmax(-1)
            outs.append(F.linear(shares @ F.linear(tokens, *v), *out).mT.reshape(frame.shape))
        return x + (outs[0] if y.ndim == 4 else torch.stack(outs, 2))

    def _middle(self, name, x, is_3d):
        x = self._residual(f"{name}.resnets.0", x, x.shape[1], is_3d)
        x = self._attend(f"{name}.attentions.0", x)
        return self._residual(f"{name}.resnets.1", x, x.shape[1], is_3d)

    def _end(self, name, x, width, is_3d):
        return self._conv(f"{name}.conv_out", F.silu(self._norm(f"{name}.conv_norm_out", x)), width, is_3d=is_3d)

    def moments(self, x):
        """Mean and log-variance, stacked, of one piece: [b, 2c, (t,) h, w]."""
        frames = x.shape[2] if x.ndim == 5 else 1

        def clip(y):
            return y.unflatten(0, (-1, frames)).transpose(1, 2) if y.ndim == 4 else y

        if x.ndim == 5:
            x = x.transpose(1, 2).flatten(0, 1)
        x = self._conv("encoder.conv_in", x, self.widths[0])
        for i, width in enumerate(self.widths):
            block = f"encoder.down_blocks.{i}"
            for j in range(self.depth):
                x = self._residual(f"{block}.resnets.{j}", x, width, self.down3d[i])
            if i + 1 < len(self.widths):
                is_3d = self.down3d[i + 1]
                x = clip(x) if is_3d else x
                x = self._conv(f"{block}.downsamplers.0.conv", x, width, is_3d=is_3d, stride=2, pad=(0, 1))
        x = self._middle("encoder.mid_block", x, self.down3d[-1])
        x = self._end("encoder", x, 2 * self.latents, self.down3d[-1])
        return self._conv("quant_conv", x, 2 * self.latents, 1, self.up3d[-1])

    def pictures(self, z):
        """The inverse: [b, 3, (t,) h, w] of one piece's latents."""
        x = self._conv("post_quant_conv", z, self.latents, 1, self.up3d[-1])
        x = self._conv("decoder.conv_in", x, self.widths[-1], is_3d=self.up3d[-1])
        x = self._middle("decoder.mid_block", x, self.up3d[-1])
        count = len(self.widths)
        for i, width in enumerate(reversed(self.widths)):
            block, is_3d = f"decoder.up_blocks.{i}", self.up3d[i]
            for j in range(self.depth + 1):
                x = self._residual(f"{block}.resnets.{j}", x, width, is_3d)
            if i == count - 1:
                continue
            if not is_3d:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            elif i == count - 2:
                x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
            else:
                first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
                rest = [F.interpolate(x[:, :, 1:], scale_factor=2, mode="trilinear")] if x.shape[2] > 1 else []
                x = torch.cat((first, *rest), 2)
            taps = (1 if i == count - 2 else 3, 3, 3)
            x = self._conv(f"{block}.upsamplers.0.conv", x, width, taps, is_3d)
        return self._end("decoder", x, 3, self.up3d[-1])
