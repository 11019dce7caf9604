"""What a configuration costs, counted from its shapes; no weights are made."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from par_jax import lora, sampling
from par_jax.arithmetic import Arithmetic
from par_jax.config import Config
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.trees import flatten

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
      train_state_bytes: float32 weights, gradients, two moments and the moving average of what is trained; frozen
        weights in the computation's type.
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
    m, made = config.model, Arithmetic(config)
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    shapes = jax.eval_shape(par.init, jax.random.key(0))
    vae = jax.eval_shape(Functional(lambda rngs: VAE(config.vae, rngs=rngs)).init, jax.random.key(0))
    trained, frozen = (_size(tree) for tree in lora.split(shapes))
    adapters = sum(math.prod(leaf.shape) for name, leaf in flatten(shapes).items() if lora.is_adapter(name))
    part = {name: _size(tree) for name, tree in lora.bare(shapes).items()}
    # Learned positions behind a prompt's tokens are read, never trained: the table leaves them out.
    fixed = _size(shapes["text_embed"]["position"]) if config.text.kind == "phi" else 0
    part["text_embed"] -= fixed
    beside = {"frozen frame VAE": _size(vae), "frozen prompt positions": fixed, "LoRA adapters": adapters}
    acting = sum(part.get(name, 0) for name in ("video_encoder", "patch_embed", "action_tokenizer", "action_head"))
    cache = jax.eval_shape(lambda p, t: sampling.start(par.bind(p), t), shapes, _text(config, batch))
    return Costs(
        parameters={row: sum(part.get(name, 0) for name in names) for row, names in ROWS.items()},
        beside={name: size for name, size in beside.items() if size},
        tokens={
            "text": made.text,
            "packages": m.context,
            "frame": made.frame,
            "action": m.chunk,
            "total": made.text + m.context * made.package,
            "frame_encoder": made.fine,
        },
        step_flops={"frame VAE": batch * _encoder_flops(config), **made.step(batch)},
        frame_flops=batch * made.next_frame(),
        step_weight_bytes=itemsize * (acting + _size(vae["encoder"])),
        cache_bytes=itemsize * _size((cache.k, cache.v)),
        train_flops=made.training(),
        train_state_bytes=5 * 4 * (trained - fixed) + jnp.dtype(config.train.dtype).itemsize * frozen,
    )


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _text(config: Config, batch: int) -> jax.ShapeDtypeStruct:
    c = config.text
    if c.kind == "words":
        return jax.ShapeDtypeStruct((batch, c.tokens), "int32")
    return jax.ShapeDtypeStruct((batch, c.tokens, c.dim), "float32")


def _encoder_flops(config: Config) -> int:
    """The VAE's encoder on one picture, as XLA counts it for a GPU: a CPU goes other ways to the same numbers."""
    vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, *config.picture.stitched, 3), "float32")
    traced = jax.jit(lambda p, x: vae.bind(p).encode_frames(x)).trace(shapes, picture)
    return int(traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"])
