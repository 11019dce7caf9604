"""From prompts to what NOVA's text projector reads: the language model's embeddings, learned positions behind them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from par_jax.errors import UserError
from par_jax.nn.functional import Functional, Params
from par_jax.tokenizer import token_ids


@functools.partial(jax.jit, static_argnums=0)
def _embed(phi: Functional, params: Params, position: jax.Array, ids: jax.Array, count: jax.Array) -> jax.Array:
    """ids [1, K], count [] -> [K, text_dim] in the type of `position`."""
    x = phi.bind(params)(ids)[0].astype(position.dtype)
    return jnp.where(jnp.arange(ids.shape[1])[:, None] < count, x, position[: ids.shape[1]])


def encode_prompts(
    tokenizer: Tokenizer, phi: Functional, params: Params, position: jax.Array, prompts: Sequence[str], length: int
) -> jax.Array:
    """Embeds prompts, each cut to `length` tokens.

    A prompt's row holds the language model's last hidden states where it has tokens and the learned positions
    behind them; the empty prompt is all positions. One program serves every prompt: it is compiled once, runs on
    one prompt at a time, and not at all for a prompt without tokens.

    Args:
      tokenizer: of the language model.
      phi: the language model, `Functional` of a `par_jax.model.phi.Phi`; the same object compiles once.
      params: its parameters.
      position: [P, text_dim], P >= length, `text_embed.position` of NOVA.
      prompts: B of them.
      length: K, NOVA's number of text tokens.

    Returns:
      [B, K, text_dim] in the type of `position`.

    Raises:
      UserError: the tokenizer has ids that the language model does not know.
    """
    ids, counts = token_ids(tokenizer, prompts, length)
    words = params["embed"]["embedding"].shape[0]
    if ids.max(initial=0) >= words:
        raise UserError(
            f"the tokenizer gives the id {ids.max()} but the language model knows {words} tokens:"
            " take both from one checkpoint"
        )
    rows = [
        _embed(phi, params, position, ids[i : i + 1], counts[i]) if counts[i] else position[:length]
        for i in range(len(ids))
    ]
    return jnp.stack(rows)
