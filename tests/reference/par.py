"""PAR in PyTorch: the physical step, the uncached pass and the training step, as fast as PyTorch's own means make them.

It stands for the code that a PyTorch programmer would write with care: fused attention, a KV cache written in place,
the prompt's keys and values computed once, conditions of the denoiser computed once a chunk, fused AdamW. It is what
`experiments.benchmark --peer=torch` runs against, and what tests hold the Flax model against. Configurations are
par_jax's dataclasses, read by attribute; nothing of par_jax is imported.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tests.reference.frame_vae import Encoder
from tests.reference.par_blocks import Block, Projector, Rotary, TimePosition, checkpointed, load, patchify, space
from tests.reference.par_heads import ActionHead, FrameEncoder, FrameHead


class TextTable(nn.Module):
    """Word ids to text tokens."""

    def __init__(self, config, width):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.vocabulary, config.dim))
        self.position = nn.Parameter(torch.zeros(config.tokens, config.dim))
        self.proj, self.norm = nn.Linear(config.dim, width), nn.LayerNorm(width)

    def forward(self, ids):
        return self.norm(self.proj(self.table[ids.long()] + self.position))


class TextProjector(nn.Module):
    """A language model's embeddings to text tokens."""

    def __init__(self, config, width):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(512, config.dim))
        self.proj, self.norm = nn.Linear(config.dim, width), nn.LayerNorm(width)

    def forward(self, embeddings):
        return self.norm(self.proj(embeddings))


class ActionTokenizer(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.proj = Projector(m.action_dim, m.width, m.action_tokenizer_width)
        self.position, self.begin = (nn.Parameter(torch.zeros(m.chunk, m.width)) for _ in range(2))

    def forward(self, actions, known):
        tokens = self.proj(actions) + self.position
        return torch.where(known[..., None, None], tokens, self.begin.to(tokens.dtype))


class VideoEncoder(nn.Module):
    def __init__(self, width, heads, depth):
        super().__init__()
        self.stack = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)


class Cache(nn.Module):
    """Keys and values of B robots that started together: [text | ring of packages], written in place.

    Attributes:
      k, v: a layer each, [B, H, K_text + W * K, D].
      ahead: [B, (M-1) * L, A], the last step's look-ahead.
      time: [] int64, packages seen.
    """

    def __init__(self, depth, shape, ahead, dtype, device):
        super().__init__()
        for i in range(depth):
            for name in "kv":
                self.register_buffer(f"{name}{i}", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("ahead", torch.zeros(ahead, device=device))
        self.register_buffer("time", torch.zeros((), dtype=torch.long, device=device))

    def layer(self, i):
        return getattr(self, f"k{i}"), getattr(self, f"v{i}")


class Par(nn.Module):
    """The model; `load` fills it."""

    def __init__(self, config):
        super().__init__()
        m, self.config = config.model, config
        rows, columns = config.latent_size
        grid = rows // m.video_patch, columns // m.video_patch
        channels, absolute = config.vae.latent_channels, m.positions == "absolute"
        self.text_embed = (TextTable if config.text.kind == "words" else TextProjector)(config.text, m.width)
        self.patch_embed = nn.Linear(m.video_patch**2 * channels, m.width)
        if absolute:
            self.video_position = TimePosition(m.width)
        self.action_tokenizer = ActionTokenizer(m)
        self.video_encoder = VideoEncoder(m.width, m.heads, m.video_depth)
        token = m.frame_patch**2 * channels
        fine = rows // m.frame_patch, columns // m.frame_patch
        if m.predict_frames:
            self.frame_encoder = FrameEncoder(fine, token, m.width, m.heads, m.frame_depth, m.positions == "rotary")
            self.frame_head = FrameHead(token, m.width, m.frame_head_width, m.frame_head_depth)
        self.action_head = ActionHead(m)
        self.grid = grid
        self.frame = grid[0] * grid[1]
        self.size = self.frame + m.chunk
        self.remat = config.train.remat != "none"

    def tables(self):
        """Makes what is no parameter: positions and the mask within a package."""
        m = self.config.model
        self.rotary = Rotary(self.grid, m.chunk, m.width // m.heads, m.positions, m.rope_theta, m.action_rope_theta)
        self.register_buffer("space", space(*self.grid, m.width), persistent=False)
        place = torch.arange(self.size)
        own = (place < self.frame) | ((place[:, None] >= self.frame) & (place <= place[:, None]))
        self.register_buffer("own", own, persistent=False)
        if m.predict_frames:
            self.frame_encoder.tables(m.width // m.heads)

    def base(self, executed, known):
        """What the next actions are told from: executed [..., L, A], known [...] bool -> [..., 1, A]."""
        last = executed[..., -1:, :].clone()
        if not self.config.model.relative_actions:
            return torch.zeros_like(last)
        last[..., -1] = 0
        return last * known[..., None, None]

    def packages(self, latents, actions, known, time):
        """latents [..., h, w, C], actions [..., L, A] float32, known [...] bool, time [...] -> [..., K, E]."""
        actions = (actions - self.base(actions, torch.ones_like(known))).to(latents.dtype)
        frame = self.patch_embed(patchify(latents, self.config.model.video_patch))
        if self.config.model.positions != "rotary":
            frame = frame + self.space.to(frame.dtype)
        if self.config.model.positions == "absolute":
            frame = frame + self.video_position(time + 1)[..., None, :].to(frame.dtype)
        return torch.cat((frame, self.action_tokenizer(actions, known).to(frame.dtype)), -2)

    def split(self, z):
        return z[..., : self.frame, :], z[..., self.frame :, :]

    # All at once.

    def encode(self, latents, actions, known, text, time, alone):
        """All packages in one pass: Z_O [B, N, K_o, E] and Z_A [B, N, L, E]."""
        b, n = known.shape
        x = self.packages(latents, actions, known, time)
        text = self.text_embed(text).to(x.dtype)
        given = text.shape[1]
        mask = self.mask(n, given, alone)
        wave = [F.pad(part.flatten(1, 2), (0, 0, given, 0))[:, None] for part in self.rotary(time, x.dtype)]
        wave[0] = torch.cat((torch.ones_like(wave[0][:, :, :given]), wave[0][:, :, given:]), 2)
        x = torch.cat((text, x.flatten(1, 2)), 1)
        for block in self.video_encoder.stack:
            x = checkpointed(block, self.remat, x, mask, wave)
        return self.split(self.video_encoder.norm(x[:, given:]).unflatten(1, (n, -1)))

    def mask(self, n, given, alone):
        """[B, 1, S, S] bool over [text | P_0 | P_1 ...]; `alone` [B] sees no earlier package."""
        k, device = self.size, alone.device
        of = torch.arange(n * k, device=device) // k
        age = of[:, None] - of
        own = (age == 0) & self.own.repeat(n, n)
        earlier = (age > 0) & (age < self.config.model.context) & ~alone[:, None, None]
        body = F.pad(own | earlier, (given, 0), value=True)
        text = F.pad(torch.ones(given, given, dtype=torch.bool, device=device), (0, n * k), value=False)
        return torch.cat((text.expand(len(alone), -1, -1), body), 1)[:, None]

    # Step by step.

    def start(self, text):
        """A cache that knows the prompt."""
        m, x = self.config.model, self.text_embed(text)
        b, given = x.shape[:2]
        shape = b, m.heads, given + m.context * self.size, m.width // m.heads
        ahead = b, (m.lookahead - 1) * m.chunk, m.action_dim
        cache = Cache(m.video_depth, shape, ahead, x.dtype, x.device)
        for i, block in enumerate(self.video_encoder.stack):
            q, k, v = block.attn.project(x)
            for kept, new in zip(cache.layer(i), (k, v), strict=True):
                kept[:, :, :given] = new
            x = block.finish(x, F.scaled_dot_product_attention(q, k, v))
        return cache

    def step(self, cache, latents, executed):
        """One package into the cache, in place: Z_O [B, K_o, E], Z_A [B, L, E]."""
        window, given, k, device = self.config.model.context, self.config.text.tokens, self.size, latents.device
        time = cache.time.expand(len(latents))
        x = self.packages(latents, executed, time > 0, time)
        slot = cache.time % window
        wave = [part[:1, None] for part in self.rotary(time, x.dtype)]
        index = torch.arange(window, device=device)
        seen = torch.where((index == slot)[:, None], self.own[:, None], (index < cache.time)[:, None])
        mask = F.pad(seen.flatten(1), (given, 0), value=True)
        rows = given + slot * k + torch.arange(k, device=device)
        for i, block in enumerate(self.video_encoder.stack):
            q, key, value = block.attn.project(x, wave)
            kept_k, kept_v = cache.layer(i)
            kept_k.index_copy_(2, rows, key)
            kept_v.index_copy_(2, rows, value)
            x = block.finish(x, F.scaled_dot_product_attention(q, kept_k, kept_v, attn_mask=mask))
        cache.time += 1
        return self.split(self.video_encoder.norm(x))

    def decide(self, z_a, ahead, known, noise):
        """Actions [B, M * L, A] of their conditions, the look-ahead, where it is known [B], and noise."""
        kv = self.action_head.condition(z_a, ahead, known)
        d = self.config.diffusion
        return self.action_head.sample(kv, noise, d.action_steps, d.action_shift)

    def act(self, cache, latents, executed, noise):
        """The physical step: the next M chunks [B, M * L, A] float32 from noise [B, M * L, A], and Z_O."""
        known = (cache.time > 0).expand(len(latents))
        base = self.base(executed, known)
        ahead = (cache.ahead - base).to(latents.dtype)
        z_o, z_a = self.step(cache, latents, executed)
        actions = self.decide(z_a, ahead, known, noise).float() + base
        cache.ahead.copy_(actions[:, self.config.model.chunk :])
        return actions, z_o


class Actor(nn.Module):
    """Pictures to actions: the frame VAE, the cached pass, the action head."""

    def __init__(self, par, vae):
        super().__init__()
        self.par, self.vae = par, vae

    def forward(self, cache, pictures, executed, noise):
        """pictures uint8 [B, H, W, 3], executed [B, L, A], noise [B, M * L, A] -> actions [B, M * L, A] and Z_O."""
        return self.par.act(cache, self.vae(pictures), executed, noise)

    def act(self, cache, pictures, executed, noise):
        """The actions alone."""
        return self(cache, pictures, executed, noise)[0]


def make(config, par, vae):
    """Our parameters, as flat dicts of numpy arrays, in PyTorch modules: an `Actor`.

    Raises:
      ValueError: the configuration is one of those that this reference has not.
    """
    m, d = config.model, config.diffusion
    if not m.transformer or not m.see_actions or m.action_head != "dit" or (d.schedule, d.chosen) != ("flow", "flow"):
        raise ValueError("the PyTorch reference has no ablations, and flow matching only")
    with torch.device("meta"):
        blank, encoder = Par(config), Encoder(config.vae)
    blank.tables()
    named = {n.removeprefix("encoder/"): x for n, x in vae.items() if n.split("/")[0] in ("encoder", "quant_conv")}
    scale = config.lora.alpha / max(config.lora.rank, 1)
    return Actor(load(blank, par, scale), load(encoder, named))
