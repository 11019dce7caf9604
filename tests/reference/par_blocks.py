"""PAR's blocks in PyTorch, as modules: what a PyTorch programmer would write, with PyTorch's fast kernels.

Modules and parameters carry our Flax names, so that `load` needs no table: layers of a stack become a list, a kernel
becomes a transposed weight, a norm's scale its weight. Nothing of par_jax is imported.
"""

import math

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn


def load(module, flat, adapter=0.0):
    """Fills a module from our parameters.

    Args:
      flat: name (parts joined with `/`) -> numpy array.
      adapter: scale of low-rank adapters; linear layers for which there are some get them.
    """
    state = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        stacked = path[1:3] == ["stack", "blocks"]
        for i, part in enumerate(torch.tensor(array).unbind() if stacked else [torch.tensor(array)]):
            parent = ".".join([path[0], "stack", str(i), *path[3:]] if stacked else path)
            if last == "lora_a":
                module.set_submodule(parent, Adapted(module.get_submodule(parent), part.shape[-1], adapter))
            key = {"kernel": "weight", "scale": "weight"}.get(last, last)
            state[f"{parent}.{key}" if parent else key] = _transposed(part) if last == "kernel" else part
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_()


class Adapted(nn.Linear):
    """A linear layer and what its low-rank adapter adds."""

    def __init__(self, layer, rank, scale):
        super().__init__(layer.in_features, layer.out_features)
        self.scale = scale
        self.lora_a = nn.Parameter(torch.zeros(layer.in_features, rank))
        self.lora_b = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x):
        return super().forward(x) + (x @ self.lora_a) @ self.lora_b * self.scale


def _transposed(kernel):
    """[in, out] -> [out, in]; [kh, kw, in, out] -> [out, in, kh, kw]; a causal kernel in time is summed over time,
    because a single picture meets itself at every tap."""
    if kernel.ndim == 5:
        kernel = kernel.sum(0)
    return kernel.permute(3, 2, 0, 1).contiguous() if kernel.ndim == 4 else kernel.T.contiguous()


def checkpointed(block, remat, *args):
    """A block whose activations are computed again in the backward pass, where `remat` says so."""
    if remat and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
    return block(*args)


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Projector(nn.Module):
    def __init__(self, dim, out, hidden=None):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden or out), nn.Linear(hidden or out, out)

    def forward(self, x):
        return self.fc2(F.silu(self.fc1(x)))


class TimeEmbed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.timestep_proj = Projector(256, dim)

    def forward(self, timestep):
        angles = timestep[..., None].float() * falling(128, timestep.device)
        return self.timestep_proj(torch.cat((angles.cos(), angles.sin()), -1).to(self.timestep_proj.fc1.weight.dtype))


class TimePosition(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.time_proj, self.norm = Projector(256, width), nn.LayerNorm(width)

    def forward(self, time):
        angles = time[..., None].float() * falling(128, time.device)
        return self.norm(self.time_proj(torch.cat((angles.sin(), angles.cos()), -1).to(self.norm.weight.dtype)))


def falling(count, device=None, base=10000.0):
    """`count` frequencies from 1 towards 1 / base."""
    return torch.exp(torch.arange(count, device=device) * (-math.log(base) / count))


def patchify(x, patch):
    """[..., h, w, C] -> [..., (h/p)(w/p), p*p*C], channels innermost."""
    x = x.unflatten(-3, (-1, patch)).unflatten(-2, (-1, patch))
    return x.transpose(-4, -3).flatten(-3).flatten(-3, -2)


def space(rows, columns, width):
    """Absolute positions of a grid's cells: [rows * columns, width]; columns before rows."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * falling(width // 4) for axis in (x, y)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], -1)


class Rotary(nn.Module):
    """Angles of a package's tokens, as cosines and sines ready for `turn`."""

    def __init__(self, grid, chunk, head, positions, theta, action_theta):
        super().__init__()
        time, row, column = self._sizes(head)
        y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        place = torch.arange(chunk)

        def fixed(values, size, base):
            return values.flatten()[:, None] * self._frequencies(size, base)

        # A token's angle is time times `rate` plus `still`.
        speed = self._frequencies(time, theta)
        frames, actions = y.numel(), chunk
        rate = F.pad(speed.expand(frames + actions, -1), (0, head // 2 - len(speed)))
        still = torch.cat(
            (
                torch.cat((torch.zeros(frames, len(speed)), fixed(y, row, theta), fixed(x, column, theta)), -1),
                F.pad(
                    torch.cat(
                        ((place + 1 - chunk)[:, None] / chunk * speed, fixed(place, row, action_theta)),
                        -1,
                    ),
                    (0, (column + 1) // 2),
                ),
            )
        )
        if positions == "rotary":  # a frame's time counts from NOVA's begin-of-video frame, a chunk's follows
            still = still + rate
        if positions == "absolute":
            rate, still = (torch.cat((torch.zeros_like(part[:frames]), part[frames:])) for part in (rate, still))
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("still", still, persistent=False)

    @staticmethod
    def _sizes(head):
        time = head // 8
        row = (head - time) // 2
        if -(-time // 2) + 2 * -(-row // 2) != head // 2:
            row -= row % 2
            time = head - 2 * row
        return time, row, row

    @staticmethod
    def _frequencies(size, base):
        return 1 / base ** (torch.arange(0, size, 2) / size)

    def forward(self, time, dtype):
        """time [...] -> cosines and sines [..., K, D / 2]."""
        angles = time[..., None, None].float() * self.rate + self.still
        return angles.cos().to(dtype), angles.sin().to(dtype)


def turn(x, wave):
    """Turns neighbouring components of x [B, H, S, D] by wave, two of [B or 1, 1, S, D / 2]."""
    cos, sin = wave
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def project(self, x, wave=None):
        """[B, S, E] -> q, k, v [B, H, S, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if wave is None else (turn(q, wave), turn(k, wave), v)

    def merge(self, o):
        return self.proj(o.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """NOVA's block: norms behind attention and MLP."""

    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), MLP(dim)

    def forward(self, x, mask=None, wave=None):
        return self.finish(x, F.scaled_dot_product_attention(*self.attn.project(x, wave), attn_mask=mask))

    def finish(self, x, o):
        x = x + self.norm1(self.attn.merge(o))
        return x + self.norm2(self.mlp(x))
