"""Phi, the language model whose last hidden states are a prompt's embeddings (Phi-2; NOVA section 3.1)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import PhiConfig
from par_jax.errors import UserError
from par_jax.nn.attention import attend
from par_jax.nn.layers import LayerNorm
from par_jax.nn.positions import frequencies
from par_jax.nn.stack import Stack

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class PhiAttention(nnx.Module):
    """Causal attention; the first components of queries and keys are turned by the token's place."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.dense = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, angles: jax.Array) -> jax.Array:
        """x [B, K, E], mask bool [K, K], angles [K, R / 2] -> [B, K, E]."""
        q, k, v = (proj(x).reshape(*x.shape[:-1], self.heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.dense(attend(rotate_halves(q, angles), rotate_halves(k, angles), v, mask).reshape(x.shape))


class PhiMLP(nnx.Module):
    """Two linear layers with the configured activation between them."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., E] -> [..., E]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class PhiBlock(nnx.Module):
    """Attention and MLP side by side, both of the same normalised input."""

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)
        self.self_attn = PhiAttention(config, rngs=rngs)
        self.mlp = PhiMLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, angles: jax.Array) -> jax.Array:
        """As `PhiAttention`."""
        y = self.input_layernorm(x)
        return x + self.self_attn(y, mask, angles) + self.mlp(y)


class Phi(nnx.Module):
    """The text encoder. Computes in the type of its parameters; softmax and norms in float32.

    `lm_head`, which tells the next token, takes no part in encoding: it stands here so that a checkpoint is whole.

    Raises:
      UserError: the configuration names an activation that is not in `ACTIVATIONS`.
    """

    def __init__(self, config: PhiConfig, *, rngs: nnx.Rngs):
        if config.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"the text encoder's hidden_act is {config.hidden_act!r}: only {' and '.join(ACTIVATIONS)} are known"
            )
        self.config = config
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.stack = Stack(lambda r: PhiBlock(config, rngs=r), config.num_hidden_layers, rngs=rngs)
        self.final_layernorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)
        self.lm_head = nnx.Linear(config.hidden_size, config.vocab_size, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Last hidden states: ids [B, K] int32 -> [B, K, E]. No token sees a later one, so padding behind is free."""
        c, k = self.config, ids.shape[1]
        rotary = int(c.partial_rotary_factor * (c.hidden_size // c.num_attention_heads))
        turns = frequencies(rotary, c.rope_theta)[: rotary // 2]
        angles = jnp.arange(k, dtype=jnp.float32)[:, None] * turns
        mask = jnp.tri(k, dtype=bool)
        x = self.embed.embedding[...][ids]  # not self.embed(ids), which keeps the type that the table was made in
        x, _ = self.stack.scan(lambda block, x, _: (block(x, mask, angles), None), x)
        return self.final_layernorm(x)


def rotate_halves(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns component i together with i + R / 2, for i < R / 2; the components from R on stay.

    Args:
      x: [B, K, H, D] queries or keys.
      angles: [K, R / 2] float32, R <= D.
    """
    half = angles.shape[-1]
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    first, second = (x[..., part].astype(jnp.float32) for part in (slice(half), slice(half, 2 * half)))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
