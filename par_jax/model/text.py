"""The instruction's path to K_t tokens: a language model's embeddings, or hashed words and a learned table."""

import re
import zlib

import jax
import numpy as np
from flax import nnx

from par_jax.config import TextConfig
from par_jax.nn.layers import LayerNorm, Linear


def tokenize(instruction: str, tokens: int, vocabulary: int) -> np.ndarray:
    """Words to ids by hash, cut or padded with 0 to `tokens`: [tokens] int32.

    The hash is crc32, the same on every machine; two words may share an id.
    """
    words = re.findall(r"[a-z0-9]+", instruction.lower())[:tokens]
    ids = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]
    return np.array(ids + [0] * (tokens - len(ids)), np.int32)


# Positions that a prompt's tokens may take, whatever the model's own number of text tokens.
TEXT_POSITIONS = 512


class TextProjector(nnx.Module):
    """A prompt's embeddings to text tokens; `position` stands where the prompt has no token."""

    def __init__(self, dim: int, width: int, *, rngs: nnx.Rngs):
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (TEXT_POSITIONS, dim)))
        self.proj = Linear(dim, width, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """[B, K, dim] -> [B, K, E]."""
        return self.norm(self.proj(embeddings))


class TextEmbed(nnx.Module):
    """Token embeddings, then NOVA's projector and norm to the transformer's width."""

    def __init__(self, config: TextConfig, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (config.vocabulary, config.dim)))
        self.position = nnx.Param(init(rngs.params(), (config.tokens, config.dim)))
        self.proj = Linear(config.dim, width, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[B, K] int32 -> [B, K, E]."""
        return self.norm(self.proj(self.table[...][ids] + self.position[...]))
