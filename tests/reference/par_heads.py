"""PAR's heads in PyTorch: NOVA's masked frame encoder and diffusion MLP, and the action-DiT."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from tests.reference.par_blocks import MLP, Attention, Block, Projector, Rotary, TimeEmbed, checkpointed, space


class FrameEncoder(nn.Module):
    """Half of the blocks on the visible tokens, half on all."""

    def __init__(self, grid, token_dim, width, heads, depth, rotary):
        super().__init__()
        self.patch_embed = nn.Linear(token_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.stack = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.rotary, self.grid = rotary, grid

    def tables(self, head):
        self.register_buffer("space", space(*self.grid, self.mask_token.numel()), persistent=False)
        angles = Rotary(self.grid, 0, head, "both", 10000.0, 1.0).still
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, tokens, condition, visible, count, remat=False):
        """tokens [B, K, p], condition [B, K_o, E], visible [B, V] of which the first count [B] hold -> [B, K, E]."""
        given, half = condition.shape[1], len(self.stack) // 2
        known = torch.arange(visible.shape[1], device=visible.device) < count[:, None]
        shown = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, visible, known)
        x = torch.where(shown[..., None], self.patch_embed(tokens), self.mask_token.to(condition.dtype))
        x = x if self.rotary else x + self.space.to(x.dtype)
        ids = visible[..., None].expand(-1, -1, x.shape[-1])
        part = torch.cat((condition, x.gather(1, ids)), 1)
        mask = F.pad(known, (given, 0), value=True)[:, None, None]
        wave = part_wave = None
        if self.rotary:
            wave, part_wave = self._wave(self.angles[None], given), self._wave(self.angles[visible], given)
        for block in self.stack[:half]:
            part = checkpointed(block, remat, part, mask, part_wave)
        # A hidden token's own value goes back to its place.
        back = torch.where(known[..., None], part[:, given:], x.gather(1, ids))
        x = torch.cat((part[:, :given], x.scatter(1, ids, back)), 1)
        for block in self.stack[half:]:
            x = checkpointed(block, remat, x, None, wave)
        return self.norm(x[:, given:])

    def _wave(self, angles, given):
        angles = F.pad(angles, (0, 0, given, 0))[:, None]
        return angles.cos(), angles.sin()


def modulate(x, scale, shift):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class MLPBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.modulation, self.proj, self.norm2 = nn.Linear(dim, 3 * dim), Projector(dim, dim), nn.LayerNorm(dim)

    def forward(self, x, z):
        scale, shift, gate = self.modulation(F.silu(z)).chunk(3, -1)
        return x + self.norm2(self.proj(modulate(x, scale, shift))) * gate


class FrameHead(nn.Module):
    """The per-token diffusion MLP."""

    def __init__(self, token_dim, cond_dim, width, depth):
        super().__init__()
        self.patch_embed, self.time_embed = nn.Linear(token_dim, width), TimeEmbed(width)
        self.condition_proj = Projector(cond_dim, width)
        self.stack = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, token_dim)

    def forward(self, x, t, z):
        z = self.condition_proj(z) + self.time_embed(t)
        x = self.patch_embed(x)
        for block in self.stack:
            x = block(x, z)
        return self.head(modulate(x, *self.modulation(F.silu(z)).chunk(2, -1)))


class ActionBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.modulation, self.attn = nn.Linear(dim, 9 * dim), Attention(dim, heads)
        self.cross_q, self.cross_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.cross_proj, self.mlp = nn.Linear(dim, dim), MLP(dim)

    def condition(self, z):
        """Keys and values of the condition, the same for every denoising step: two of [B, H, K, D]."""
        return self.cross_kv(z).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x, t, kv):
        s = self.modulation(F.silu(t)).chunk(9, -1)
        o = F.scaled_dot_product_attention(*self.attn.project(modulate(x, s[0], s[1])))
        x = x + s[2] * self.attn.merge(o)
        q = self.cross_q(modulate(x, s[3], s[4])).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        o = F.scaled_dot_product_attention(q, *kv)
        x = x + s[5] * self.cross_proj(o.transpose(1, 2).flatten(2))
        return x + s[8] * self.mlp(modulate(x, s[6], s[7]))


class ActionHead(nn.Module):
    """The action-DiT: all actions of `m.lookahead` chunks together."""

    def __init__(self, m):
        super().__init__()
        width, actions = m.action_head_width, m.lookahead * m.chunk
        self.embed, self.position = nn.Linear(m.action_dim, width), nn.Parameter(torch.zeros(actions, width))
        self.time_embed, self.condition_proj = TimeEmbed(width), nn.Linear(m.width, width)
        self.stack = nn.ModuleList(ActionBlock(width, m.action_head_heads) for _ in range(m.action_head_depth))
        self.modulation, self.head = nn.Linear(width, 2 * width), nn.Linear(width, m.action_dim)
        self.looks_ahead = m.lookahead > 1
        if self.looks_ahead:
            self.ahead_embed = nn.Linear(m.action_dim, width)
            self.ahead_position = nn.Parameter(torch.zeros(actions - m.chunk, width))
            self.ahead_unknown = nn.Parameter(torch.zeros(actions - m.chunk, width))

    def condition(self, z, ahead, known):
        """What every denoising step reads of Z_A [R, K, E] and of the look-ahead [R, S - L, A], where it is known [R]:
        each block's keys and values."""
        z = self.condition_proj(z)
        if self.looks_ahead:
            tokens = (self.ahead_embed(ahead) + self.ahead_position).to(z.dtype)
            z = torch.cat((z, torch.where(known[:, None, None], tokens, self.ahead_unknown.to(z.dtype))), 1)
        return [block.condition(z) for block in self.stack]

    def forward(self, x, t, kv):
        """x [R, S, A], t [R] or [1], kv as `condition` gives them -> [R, S, A]."""
        t = self.time_embed(t)[:, None]
        x = self.embed(x) + self.position.to(t.dtype)
        for block, each in zip(self.stack, kv, strict=True):
            x = block(x, t, each)
        return self.head(modulate(x, *self.modulation(F.silu(t)).chunk(2, -1)))

    def sample(self, kv, noise, steps, shift):
        """Euler's method along the flow, from noise [R, S, A] to actions, at times that are shifted towards noise."""
        x = noise
        times = [shift * t / (1 + (shift - 1) * t) for t in (1 - i / steps for i in range(steps + 1))]
        for now, then in itertools.pairwise(times):
            x = x - (now - then) * self(x, torch.full((1,), 1000 * now, device=x.device), kv)
        return x
