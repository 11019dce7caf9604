"""NOVA's transformer in PyTorch, as functions of a dict of tensors under the published names.

Written from the paper (arXiv 2412.14169) and from what the public model computes. It shares no code and no table
with par_jax or convert, so that parity holds where the recorded numbers are absent. Configurations are dicts as in
a published transformer/config.json, schedulers are made of dicts as in scheduler_config.json. Axes are torch's:
pictures [b, c, h, w], clips [b, c, t, h, w]; every draw is an argument.
"""

import dataclasses
import math
import re

import torch
import torch.nn.functional as F

from tests.reference.schedulers import scheduler


def sizes(config):
    """What the configuration implies: depths, widths, heads, patches and grids."""
    (video, width), (frame, _), (head, head_width) = (
        map(int, re.search(r"d(\d+)w(\d+)", name).groups()) for name in config["arch"]
    )
    patch = 15 // config["image_stride"] + 1
    return {
        "depth": {"video_encoder": video, "image_encoder": frame, "image_decoder": head},
        "width": width,
        "head_width": head_width,
        "heads": config.get("num_heads") or (12 if width == 768 else 16),
        "patch": {"video_encoder": 2 * patch, "image_encoder": patch, "image_decoder": patch},
        "latent": tuple(size // config["image_stride"] for size in config["image_size"]),
    }


def random_state(config, seed=0):
    """A random tensor for every published name, of sizes at which nothing hides behind zeros."""
    s = sizes(config)
    width, inner, channels, depth = s["width"], s["head_width"], config["image_dim"], s["depth"]
    tokens = s["patch"]["image_encoder"] ** 2 * channels
    shapes = {"mask_embed.bos_token": (1, width), "mask_embed.mask_token": (1, width)}

    def linear(name, fan_in, fan_out, bias=True):
        shapes[f"{name}.weight"] = (fan_out, fan_in)
        if bias:
            shapes[f"{name}.bias"] = (fan_out,)

    def norm(name, size):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    for part, patch in s["patch"].items():
        out = inner if part == "image_decoder" else width
        linear(f"{part}.patch_embed.proj", 0, out)
        shapes[f"{part}.patch_embed.proj.weight"] = (out, channels, patch, patch)
    for part in ("video_encoder", "image_encoder"):
        for block in (f"{part}.blocks.{i}" for i in range(depth[part])):
            linear(f"{block}.attn.qkv", width, 3 * width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", width, 4 * width)
            linear(f"{block}.mlp.fc2", 4 * width, width)
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
        norm(f"{part}.norm", width)
    for block in (f"image_decoder.blocks.{i}" for i in range(depth["image_decoder"])):
        linear(f"{block}.norm1.proj", inner, 3 * inner)
        linear(f"{block}.proj.fc1", inner, inner)
        linear(f"{block}.proj.fc2", inner, inner)
        norm(f"{block}.norm2", inner)
    linear("image_decoder.norm.proj", inner, 2 * inner)
    linear("image_decoder.head", inner, tokens)
    for name, fan_in in (("timestep", 256), ("condition", width)):
        linear(f"image_decoder.time_cond_embed.{name}_proj.fc1", fan_in, inner)
        linear(f"image_decoder.time_cond_embed.{name}_proj.fc2", inner, inner)
    shapes["text_embed.weight"] = (512, config["text_token_dim"])
    linear("text_embed.proj", config["text_token_dim"], width)
    norm("text_embed.norm", width)
    pairs = [] if config["video_base_size"][0] == 1 else ["motion_embed.flow_proj", "motion_embed.fps_proj"]
    if not config["rotary_pos_embed"]:
        pairs.append("video_pos_embed.time_proj")
        norm("video_pos_embed.norm", width)
    for name in pairs:
        linear(f"{name}.0", 256, width)
        linear(f"{name}.2", width, width)
    if config["video_mixer_rank"]:
        rank = max(config["video_mixer_rank"], 0)
        if rank:
            linear("video_encoder.mixer.lora", width, rank, bias=False)
        linear("video_encoder.mixer.proj", rank or width, 2 * width)

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        gain = "norm" in name.split(".")[-2] and name.endswith("weight")
        scale = (3 * math.prod(shape[1:])) ** -0.5
        state[name] = 1 + 0.1 * drawn if gain else drawn * (0.1 if len(shape) == 1 else scale)
    return state


def waves(x, count=128, first=torch.sin, second=torch.cos):
    """[...] -> [..., 2 * count]: two waves of each of `count` frequencies that fall from 1 towards 1 / 10000."""
    angles = x.float()[..., None] * 10000 ** -(torch.arange(count) / count)
    return torch.cat((first(angles), second(angles)), -1)


def turn(x, angles):
    """Turns neighbouring components of x [b, heads, s, d] as complex numbers by angles [b or 1, s, d / 2]."""
    spun = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(spun).flatten(-2)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How strongly the prompt (and the video so far) pull.

    Attributes:
      scale: of the prompt; 1 for one pass without guidance.
      trunc: timesteps below it run without guidance.
      renorm: least factor by which the guided prediction may be shortened to the plain one's length.
      image: of the video so far; above 0 there is a third pass.
      minimum: scale that the first set starts from, growing to `scale` at the last.
    """

    scale: float = 1.0
    trunc: float = 0.0
    renorm: float = 1.0
    image: float = 0.0
    minimum: float | None = None

    @property
    def passes(self):
        return 1 if self.scale <= 1 else 3 if self.image else 2

    def of_set(self, share):
        least = self.minimum or self.scale
        return (self.scale - least) * share + least

    def combine(self, predictions, scale):
        """[passes * b, k, p] -> [b, k, p]."""
        if self.passes == 1:
            return predictions
        full, null, *rest = predictions.chunk(self.passes)
        still = rest[0] if rest else null
        out = null + (full - still) * scale
        length, wanted = (y.flatten(1).norm(dim=1)[:, None, None] for y in (out, full))
        out = out * (wanted / length).clamp(self.renorm, 1) if self.renorm < 1 else out
        return out + (still - null) * self.image if rest else out


def set_sizes(config, sets):
    """Patches that each set predicts: few first, by a cosine."""
    total = math.prod(config["image_base_size"])
    left = [round(math.cos(math.pi / 2 * i / sets) * total) for i in range(sets + 1)]
    return [a - b for a, b in zip(left, left[1:], strict=False) if a > b]


class Nova:
    """The parts, and what is made of them; `state` maps published names to tensors."""

    def __init__(self, config, state):
        self.config, self.state = config, {k: torch.as_tensor(v) for k, v in state.items()}
        self.sizes = sizes(config)
        self.rotary = config["rotary_pos_embed"]
        self.heads = self.sizes["heads"]

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def pair(self, first, second, x):
        return self.linear(second, F.silu(self.linear(first, x)))

    # Text, motion, patches.

    def prompts(self, embeddings):
        """A list of [n, d], n <= text tokens, filled up by the learned positions: [b, k, d]."""
        rows = self.state["text_embed.weight"][: self.config["text_token_len"]]
        return torch.stack([torch.cat((torch.as_tensor(e), rows[len(e) :])) for e in embeddings])

    def text(self, embeddings):
        return self.norm("text_embed.norm", self.linear("text_embed.proj", embeddings))

    def motion(self, flow, fps):
        """Two tokens a row: [b], [b] -> [b, 2, d]."""
        said = (("flow", flow), ("fps", fps))
        return torch.stack(
            [
                self.pair(f"motion_embed.{k}_proj.0", f"motion_embed.{k}_proj.2", waves(torch.as_tensor(x)))
                for k, x in said
            ],
            1,
        )

    def embed(self, part, pictures):
        patch = f"{part}.patch_embed.proj"
        size = self.sizes["patch"][part]
        out = F.conv2d(pictures, self.state[f"{patch}.weight"], self.state[f"{patch}.bias"], size)
        return out.flatten(2).mT

    def patches(self, pictures):
        """[b, c, h, w] -> [b, k, p * p * c]."""
        p = self.sizes["patch"]["image_encoder"]
        x = pictures.unfold(2, p, p).unfold(3, p, p)
        return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def pictures(self, patches):
        p, (h, w) = self.sizes["patch"]["image_encoder"], self.sizes["latent"]
        x = patches.unflatten(2, (p, p, -1)).unflatten(1, (h // p, w // p))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, h, w)

    # Positions.

    def space(self, size):
        """Absolute positions of a grid's cells: [h * w, d], columns before rows."""
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
        quarter = self.sizes["width"] // 4
        return torch.cat([waves(axis.flatten(), quarter) for axis in (columns, rows)], -1)

    def time(self, frames):
        """Absolute positions of `frames` times, spread over those the model was trained on: [t, 1, d]."""
        times = torch.arange(frames) / (frames / self.config["video_base_size"][0])
        made = self.pair("video_pos_embed.time_proj.0", "video_pos_embed.time_proj.2", waves(times))
        return self.norm("video_pos_embed.norm", made)[:, None]

    def angles(self, times, size, before=0):
        """Rotary angles of a grid at some times, after `before` tokens that are not turned: [1, s, d / 2]."""
        dim = self.sizes["width"] // self.heads
        split = (dim // 8, *[(dim - dim // 8) // 2] * 2)
        cells = torch.cartesian_prod(*(torch.as_tensor(axis) for axis in (times, *map(range, size)))).float()
        parts = [cells[:, i, None] / 10000 ** (torch.arange(0, n, 2).float() / n) for i, n in enumerate(split)]
        return F.pad(torch.cat(parts, -1), (0, 0, before, 0))[None]

    # Transformers.

    def block(self, name, x, mask=None, angles=None, cache=None):
        q, k, v = self.linear(f"{name}.attn.qkv", x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = turn(q, angles), turn(k, angles)
        if cache is not None:
            old_k, old_v = cache.get(name, (k[:, :, :0], v[:, :, :0]))
            k, v = cache[name] = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.norm(f"{name}.norm1", self.linear(f"{name}.attn.proj", out))
        inner = F.gelu(self.linear(f"{name}.mlp.fc1", x))
        return x + self.norm(f"{name}.norm2", self.linear(f"{name}.mlp.fc2", inner))

    def blocks(self, part, which, x, **kwargs):
        for i in which:
            x = self.block(f"{part}.blocks.{i}", x, **kwargs)
        return x

    def video_encoder(self, clip, text):
        """The training pass: begin frame and all frames but the last, each telling of the next: [b, t * k, d].

        Text and begin frame are one block in which all see all; a later frame sees itself and what is before it.
        """
        b, _, frames = clip.shape[:3]
        begin = self.state["mask_embed.bos_token"]
        size = tuple(n // self.sizes["patch"]["video_encoder"] for n in clip.shape[3:])
        k, known = math.prod(size), text.shape[1]
        past = [self.embed("video_encoder", clip[:, :, t]) for t in range(frames - 1)]
        x = torch.stack([begin.expand(b, k, -1), *past], 1)
        angles = self.angles(range(frames), size, known) if self.rotary else None
        if not self.rotary:
            x = x + self.time(frames) + self.space(self.config["video_base_size"][1:])
        frame = torch.cat((torch.zeros(known), torch.arange(frames).repeat_interleave(k)))
        x = torch.cat((text, x.flatten(1, 2)), 1)
        depth = range(self.sizes["depth"]["video_encoder"])
        x = self.blocks("video_encoder", depth, x, mask=frame[:, None] >= frame, angles=angles)
        return self.norm("video_encoder.norm", x[:, known:])

    def mix(self, first, later):
        """The first frame's outputs, scaled and shifted as a later frame's say; without a mixer the latter's own."""
        name = "video_encoder.mixer"
        if f"{name}.proj.weight" not in self.state:
            return later
        said = F.silu(later)
        if f"{name}.lora.weight" in self.state:
            said = self.linear(f"{name}.lora", said)
        scale, shift = self.linear(f"{name}.proj", said).chunk(2, -1)
        return first * (1 + scale) + shift

    def masked(self, pictures, mask):
        """Embedded patches, the mask token where mask [b, k, 1] is 1."""
        return torch.where(mask.bool(), self.state["mask_embed.mask_token"], self.embed("image_encoder", pictures))

    def frame_encoder(self, tokens, condition, visible):
        """Half of the blocks on the visible tokens (ids [b, v]), half on all; the condition stands before both."""
        known, half = condition.shape[1], self.sizes["depth"]["image_encoder"] // 2
        size = self.config["image_base_size"]
        angles = part_angles = None
        ids = visible[..., None].expand(-1, -1, tokens.shape[-1])
        if self.rotary:
            own = self.angles([0], size).expand(len(tokens), -1, -1)
            part = own.gather(1, visible[..., None].expand(-1, -1, own.shape[-1]))
            angles, part_angles = (F.pad(a, (0, 0, known, 0)) for a in (own, part))
        else:
            tokens = tokens + self.space(size)
        x = torch.cat((condition, tokens.gather(1, ids)), 1)
        x = self.blocks("image_encoder", range(half), x, angles=part_angles)
        x = torch.cat((x[:, :known], tokens.scatter(1, ids, x[:, known:])), 1)
        depth = self.sizes["depth"]["image_encoder"]
        x = self.blocks("image_encoder", range(half, depth), x, angles=angles)
        return self.norm("image_encoder.norm", x[:, known:])

    def modulated(self, name, x, z):
        scale, shift, *gate = self.linear(name, F.silu(z)).split(x.shape[-1], -1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift, *gate

    def frame_head(self, pictures, timestep, z):
        """The diffusion MLP: noisy [b, c, h, w], timestep [b] or [b, k], conditions [b, k, d] -> [b, k, p * p * c]."""
        name = "image_decoder.time_cond_embed"
        frequencies = torch.exp(torch.arange(128) * (-math.log(10000) / 128))
        angles = timestep[..., None].float() * frequencies
        told = self.pair(
            f"{name}.timestep_proj.fc1", f"{name}.timestep_proj.fc2", torch.cat((angles.cos(), angles.sin()), -1)
        )
        z = self.pair(f"{name}.condition_proj.fc1", f"{name}.condition_proj.fc2", z)
        z = z + (told[:, None] if told.ndim == 2 else told)
        x = self.embed("image_decoder", pictures)
        for block in (f"image_decoder.blocks.{i}" for i in range(self.sizes["depth"]["image_decoder"])):
            h, gate = self.modulated(f"{block}.norm1.proj", x, z)
            x = x + gate * self.norm(f"{block}.norm2", self.pair(f"{block}.proj.fc1", f"{block}.proj.fc2", h))
        return self.linear("image_decoder.head", self.modulated("image_decoder.norm.proj", x, z)[0])

    # The whole.

    def train(self, clip, text, schedule, mask, visible, noise, index):
        """One training pass with the draws given: every part's output, and the losses by name.

        Args:
          clip: [b, c, t, h, w].
          text: [b, k, d] tokens.
          mask: [b * t, k, 1], 1 where a patch is to be predicted.
          visible: [b * t, v, 1] ids of the others.
          noise: [r * b * t, k, p], r repeats of the batch, repeat-major.
          index: [r * b * t, k], into the schedule.
        """
        b, frames = clip.shape[0], clip.shape[2]
        out = {"video_encoder.out": self.video_encoder(clip, text)}
        c = out["video_encoder.out"].unflatten(1, (frames, -1))
        c = torch.cat((c[:, :1], self.mix(c[:, :1], c[:, 1:])), 1).flatten(0, 1)
        pictures = clip.transpose(1, 2).flatten(0, 1)
        z = self.frame_encoder(self.masked(pictures, mask), c, visible[..., 0])
        repeats = len(noise) // len(z)
        x = self.patches(pictures).repeat(repeats, 1, 1)
        out |= {"image_encoder.out": z, "decoder.timestep": schedule.told(index)}
        out["decoder.x_t"] = self.pictures(schedule.noised(x, noise, index))
        out["decoder.out"] = self.frame_head(out["decoder.x_t"], out["decoder.timestep"], z.repeat(repeats, 1, 1))
        error = ((out["decoder.out"] - schedule.target(x, noise)) ** 2).mean(-1)
        weight = mask[..., 0].repeat(repeats, 1)
        error = error * weight / (weight.sum() + 1e-5)
        if frames == 1:
            return out | {"loss": error.sum()}
        by_frame = error.view(repeats, b, frames, -1).sum((0, 1, 3))
        rest = by_frame[1:].sum() * (frames / (frames - 1))
        return out | {"loss_t2i": by_frame[0] * frames, "loss_i2i": rest}

    def generate(
        self, text, null, schedule, *, steps, counts, order, noise, frames=1, step_noise=(), guidance=None, first=None
    ):
        """Latents [b, c, t, h, w], all draws given.

        Args:
          text: [b, k, d] tokens (motion tokens included); null: those without the prompt.
          steps: denoising steps.
          counts: patches of each set.
          order: [b, k] ids, by sets one after the other.
          noise: [sets in all, b, c, h, w]; step_noise: the chain's, in the order in which it draws.
          first: [b, c, h, w], a frame to start from.
        """
        guidance = guidance or Guidance()
        noise, step_noise = iter(noise), iter(step_noise)
        passes, b = guidance.passes, len(text)
        begin, cache, made = self.state["mask_embed.bos_token"], {}, []
        size = self.config["video_base_size"][1:]
        depth, told = range(self.sizes["depth"]["video_encoder"]), schedule.plan(steps)
        tokens, anchor = torch.cat([text, null, null][:passes]), None
        for t in range(frames):
            bare = begin.expand(b, math.prod(size), -1)
            x = self.embed("video_encoder", made[-1]) if t else bare
            x = x if self.rotary else x + self.time(frames)[t] + self.space(size)
            x = torch.cat([x, bare if guidance.image else x, x][:passes])
            angles = self.angles([t], size, 0 if t else tokens.shape[1]) if self.rotary else None
            x = x if t else torch.cat((tokens, x), 1)
            x = self.blocks("video_encoder", depth, x, angles=angles, cache=cache)
            c = self.norm("video_encoder.norm", x if t else x[:, tokens.shape[1] :])
            anchor, c = (anchor, self.mix(anchor, c)) if t else (c, c)
            if t == 0 and first is not None:
                made.append(first)
                continue
            made.append(self._frame(c, schedule, told, counts, order, noise, step_noise, guidance))
        return torch.stack(made, 2)

    def _frame(self, c, schedule, told, counts, order, noise, step_noise, guidance):
        b, k = order.shape
        x, mask, begin = torch.zeros(b, self.config["image_dim"], *self.sizes["latent"]), torch.ones(b, k, 1), 0
        for i, count in enumerate(counts):
            ids = order[:, begin : begin + count, None]
            now = torch.zeros(b, k, 1).scatter(1, ids, 1.0)
            tokens = self.masked(x, mask).repeat(guidance.passes, 1, 1)
            z = self.frame_encoder(tokens, c, order[:, :begin].repeat(guidance.passes, 1))
            sample = self._denoise(z, now, schedule, told, next(noise), step_noise, guidance, (i + 1) / len(counts))
            x = x + self.pictures(self.patches(sample) * now)
            mask, begin = mask * (1 - now), begin + count
        return x

    def _denoise(self, z, now, schedule, told, x, step_noise, guidance, share):
        """The chain; patches outside the set `now` are their own prediction, and count in the guidance's lengths."""
        scale = guidance.of_set(share)
        for step, timestep in enumerate(told):
            if guidance.passes > 1 and timestep < guidance.trunc:
                guidance, z = Guidance(), z.chunk(guidance.passes)[0]
            many = x.repeat(guidance.passes, 1, 1, 1)
            out = self.frame_head(many, timestep.expand(len(z)), z)
            out = torch.where(now.repeat(guidance.passes, 1, 1).bool(), out, self.patches(many))
            out = self.pictures(guidance.combine(out, scale))
            drawn = next(step_noise) if schedule.draws(step) else None
            x = schedule.step(x, out, step, drawn)
        return x


def record(config, scheduling, info, seed=0, given=False):
    """A random checkpoint and, for random inputs and draws, everything that a folder of recordings holds of it.

    Args:
      config, scheduling: as in transformer/config.json and scheduler/scheduler_config.json.
      info: as in io.json: frames, diffusion_steps, loss_repeat, guidance_scale and what else there is of guidance,
        flow_shift; and `sets`, of tokens a frame.
      given: whether generation starts from a given frame.

    Returns:
      The state dict, and `io.safetensors` as a dict of tensors.
    """
    state = random_state(config, seed)
    nova, frames = Nova(config, state), info["frames"]
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    b, k, channels = 2, math.prod(config["image_base_size"]), config["image_dim"]
    known, width, latent = config["text_token_len"], nova.sizes["width"], nova.sizes["latent"]
    io = {"text.prompt0": draw(known, config["text_token_dim"]), "text.prompt1": draw(1, config["text_token_dim"])}
    io["text.out"] = nova.text(nova.prompts([io["text.prompt0"], io["text.prompt1"]]))
    if "motion_embed.flow_proj.0.weight" in state:
        io |= {"motion.flow": torch.tensor([3.0, 7.0]), "motion.fps": torch.tensor([12.0, 8.0])}
        io["motion.out"] = nova.motion(io["motion.flow"], io["motion.fps"])
    io["patchify.in"] = draw(b, channels, *latent)
    io["patchify.out"] = nova.patches(io["patchify.in"])
    io |= {"decoder.z": draw(b, k, width), "decoder.x_t": draw(b, channels, *latent)}
    io["decoder.timestep"] = torch.tensor([10, 700])
    io["decoder.out"] = nova.frame_head(io["decoder.x_t"], io["decoder.timestep"], io["decoder.z"])

    schedule, repeats = scheduler(scheduling), info["loss_repeat"]
    io |= {"latents": draw(b, channels, frames, *latent), "train.c": draw(b, known, width)}
    io["train.prev_ids"] = draw(b * frames, k, 1).argsort(1)[:, : k // 3]
    io["train.mask"] = torch.ones(b * frames, k, 1).scatter(1, io["train.prev_ids"], 0.0)
    io["train.noise"] = draw(repeats * b * frames, k, nova.patches(io["patchify.in"]).shape[-1])
    io["train.timestep_index"] = torch.randint(schedule.total, io["train.noise"].shape[:2], generator=generator)
    draws = (io[f"train.{name}"] for name in ("mask", "prev_ids", "noise", "timestep_index"))
    trained = nova.train(io["latents"], io["train.c"], schedule, *draws)
    io |= {f"train.{name}": value for name, value in trained.items()}

    schedule, steps = scheduler(scheduling, info.get("flow_shift")), info["diffusion_steps"]
    counts, made = set_sizes(config, info["sets"]), frames - given
    io |= {"generate.c": draw(b, known + 2, width), "generate.null_c": draw(b, known + 2, width)}
    io["generate.uniform"] = torch.rand(1, b, k, 1, generator=generator)
    io["generate.pred_ids"] = io["generate.uniform"][0].argsort(1)
    io["generate.num_preds"] = torch.tensor(counts)
    io["generate.noise"] = draw(made * len(counts), b, channels, *latent)
    schedule.plan(steps)
    drawing = sum(schedule.draws(step) for step in range(steps))
    if drawing:
        io["generate.step_noise"] = draw(made * len(counts) * drawing, b, channels, *latent)
    io["generate.out"] = nova.generate(
        io["generate.c"],
        io["generate.null_c"],
        schedule,
        steps=steps,
        counts=counts,
        order=io["generate.pred_ids"][..., 0],
        noise=io["generate.noise"],
        frames=frames,
        step_noise=io.get("generate.step_noise", ()),
        guidance=Guidance(
            info["guidance_scale"],
            info.get("guidance_trunc", 0.0),
            info.get("guidance_renorm", 1.0),
            info.get("image_guidance_scale", 0.0),
            info.get("min_guidance_scale"),
        ),
        first=draw(b, channels, *latent) if given else None,
    )
    return state, io
