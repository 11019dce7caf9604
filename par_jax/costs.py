"""Arithmetic and memory of a configuration, counted from its shapes; no weights are made.

A multiplication with an addition counts as two. Softmax, norms and activations are left out: they are a few
in a hundred of the arithmetic.
"""

import dataclasses
import math
from typing import Any

import jax

from par_jax import sampling
from par_jax.config import Config
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.sets import set_sizes

# The paper's table 1: which of our parts its rows hold.
ROWS = {
    "Causal Transformer": ("text_embed", "patch_embed", "video_position", "video_encoder", "frame_encoder"),
    "Frame De-Tokenizer": ("frame_head",),
    "Action De-Tokenizer": ("action_head",),
    "Action Tokenizer": ("action_tokenizer",),
}


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a preset costs.

    Attributes:
      parameters: by row of the paper's table 1.
      beside: parameters that stand beside those: the frozen VAE, and the prompt positions that are never trained.
      tokens: the sequence's layout.
      step_flops: of one acting step of the whole batch, by part.
      frame_flops: of predicting the next frame on top of it.
      step_weight_bytes: weights that an acting step reads.
      cache_bytes: of the KV cache.
      train_flops: of one training step, forward and backward.
      train_state_bytes: float32 weights, gradients, two moments and the moving average.
    """

    parameters: dict[str, int]
    beside: dict[str, int]
    tokens: dict[str, int]
    step_flops: dict[str, int]
    frame_flops: int
    step_weight_bytes: int
    cache_bytes: int
    train_flops: int
    train_state_bytes: int


def costs(config: Config, batch: int = 1, itemsize: int = 2) -> Costs:
    """Counts.

    Args:
      config: of the policy.
      batch: robots that act together.
      itemsize: bytes of a weight and of a cached number when acting.
    """
    m, d = config.model, config.diffusion
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    shapes = jax.eval_shape(par.init, jax.random.key(0))
    vae = jax.eval_shape(Functional(lambda rngs: VAE(config.vae, rngs=rngs)).init, jax.random.key(0))
    part = {name: _size(tree) for name, tree in shapes.items()}
    # Learned positions behind a prompt's tokens are read, never trained: the table leaves them out.
    fixed = _size(shapes["text_embed"]["position"]) if config.text.kind == "phi" else 0
    part["text_embed"] -= fixed
    rows = {row: sum(part.get(name, 0) for name in names) for row, names in ROWS.items()}

    frame, package = config.frame_tokens, config.frame_tokens + m.chunk
    text = config.text.tokens
    fine = math.prod(config.latent_size) // m.frame_patch**2
    window = text + m.context * package
    depth, frame_depth = (m.video_depth if m.transformer else 0), (m.frame_depth if m.predict_frames else 0)
    tokens = {
        "text": text,
        "packages": m.context,
        "frame": frame,
        "action": m.chunk,
        "total": window,
        "frame_encoder": fine,
    }

    def transformer(depth: int, rows: int, seen: int) -> int:
        """Linear layers of `rows` tokens, and their attention to `seen`."""
        return depth * (24 * rows * m.width**2 + 4 * rows * seen * m.width)

    def action_head(conditions: int, passes: int) -> int:
        """Keys and values of what a condition sees are made once, the denoiser runs in every pass."""
        w, length = m.action_head_width, m.lookahead * m.chunk
        seen = (m.chunk if m.transformer else text + package) + length - m.chunk
        if m.action_head != "dit":
            numbers = m.lookahead * m.action_dim * (m.bins if m.action_head == "bins" else 1)
            return conditions * 2 * m.chunk * (m.width * w + 8 * m.action_head_depth * w**2 + w * numbers)
        once = 2 * seen * (m.width * w + 2 * m.action_head_depth * w**2)
        block = 2 * (14 * length * w**2 + 9 * w**2) + 4 * length * (length + seen) * w
        return conditions * (once + passes * (m.action_head_depth * block + 4 * length * m.action_dim * w))

    def frame_head(rows: int) -> int:
        w, token_dim = m.frame_head_width, m.frame_patch**2 * config.vae.latent_channels
        return 2 * rows * (m.frame_head_depth * 5 * w**2 + 4 * w**2 + m.width * w + 2 * token_dim * w)

    tokenizer = 2 * package * m.width * max(m.video_patch**2 * config.vae.latent_channels, m.action_tokenizer_width)
    step = {
        "frame VAE": batch * _encoder_flops(config),
        "tokenizers": batch * tokenizer,
        "transformer": batch * transformer(depth, package, window),
        "action head": action_head(batch, d.action_steps),
    }
    sizes = set_sizes(fine, d.frame_sets)
    known, frame_flops = 0, 0
    for size in sizes:
        visible = frame + known
        frame_flops += transformer(frame_depth // 2, visible, visible)
        frame_flops += transformer(frame_depth - frame_depth // 2, frame + fine, frame + fine)
        frame_flops += d.frame_steps * frame_head(size) * m.predict_frames
        known += size
    n, b = config.train.packages, config.train.batch
    pictures = max(1, round(config.train.frame_share * b * n))
    # Training shows 3 in 20 of a frame's tokens on average, as NOVA does.
    shown = frame + round(0.15 * fine)
    forward = (
        b * transformer(depth, text + n * package, text + n * package)
        + pictures * transformer(frame_depth // 2, shown, shown)
        + pictures * transformer(frame_depth - frame_depth // 2, frame + fine, frame + fine)
        + d.draws * pictures * frame_head(fine) * m.predict_frames
        + action_head(b * n, d.draws)
    )
    acting = sum(part.get(name, 0) for name in ("video_encoder", "patch_embed", "action_tokenizer", "action_head"))
    cache = jax.eval_shape(lambda p, t: sampling.start(par.bind(p), t), shapes, _text(config, batch))
    return Costs(
        parameters=rows,
        beside={"frozen frame VAE": _size(vae), **({"frozen prompt positions": fixed} if fixed else {})},
        tokens=tokens,
        step_flops=step,
        frame_flops=batch * frame_flops,
        step_weight_bytes=itemsize * (acting + _size(vae["encoder"])),
        cache_bytes=itemsize * (_size(cache) - batch),
        train_flops=3 * forward,
        train_state_bytes=5 * 4 * sum(rows.values()),
    )


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _text(config: Config, batch: int) -> jax.ShapeDtypeStruct:
    c = config.text
    if c.kind == "words":
        return jax.ShapeDtypeStruct((batch, c.tokens), "int32")
    return jax.ShapeDtypeStruct((batch, c.tokens, c.dim), "float32")


def _encoder_flops(config: Config) -> int:
    """The VAE's encoder on one picture, its convolutions as XLA counts them."""
    vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, *config.picture.crop, 3), "float32")
    lowered = jax.jit(lambda p, x: vae.bind(p).encode_frames(x)).lower(shapes, picture)
    return int(lowered.cost_analysis()["flops"])
