"""The instruction as the policy reads it: hashed words, or embeddings of a frozen language model, made once."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import pretrained
from par_jax.config import TextConfig
from par_jax.errors import UserError
from par_jax.model.phi import Phi
from par_jax.model.prompt import encode_prompts
from par_jax.model.text import tokenize
from par_jax.nn.functional import Functional
from par_jax.tokenizer import load_tokenizer

FILE = "instruction.npz"


def embed_prompts(checkpoint: Path, position: jax.Array, prompts: Sequence[str], dtype: str | None = None) -> jax.Array:
    """Embeddings by a converted checkpoint's language model, which leaves the memory with this call.

    Args:
      checkpoint: made by convert/nova_to_flax.py.
      position: [P, dim], NOVA's learned `text_embed.position`.
      prompts: B of them.
      dtype: of the computation; the checkpoint's by default.

    Returns:
      [B, K_text, dim] in the type of `position`.

    Raises:
      UserError: the checkpoint has no text encoder or no tokenizer.
    """
    architecture = pretrained.read_config(checkpoint)
    if architecture.text_encoder is None:
        raise UserError(f"{checkpoint} has no text encoder: convert a folder that has text_encoder/ and tokenizer/")
    config = architecture.text_encoder
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    params = pretrained.load(checkpoint, "text_encoder")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or leaf.dtype), params)
    phi = Functional(lambda rngs: Phi(config, rngs=rngs))
    return encode_prompts(tokenizer, phi, params, position, prompts, architecture.nova.text_tokens)


def keep(folder: Path, instructions: Sequence[str], embeddings: np.ndarray) -> None:
    """Writes instructions' embeddings [n, K_text, dim] into a run's folder, for training and for rollouts."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{FILE}.part"
    with part.open("wb") as file:
        np.savez(file, instructions=np.array(instructions), embeddings=np.asarray(embeddings, np.float32))
    part.replace(folder / FILE)


def read(folder: Path, instruction: str) -> np.ndarray:
    """What `keep` has written of an instruction: [K_text, dim] float32.

    Raises:
      UserError: it is missing, damaged, or does not hold this instruction.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path} is missing: it holds the instruction's embeddings; train again with --init")
    try:
        with np.load(path) as kept:
            said, embeddings = [str(words) for words in kept["instructions"]], kept["embeddings"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): train again with --init into a new --workdir") from error
    if instruction not in said:
        raise UserError(f"{folder} was trained to {' and '.join(map(repr, said))}, not to {instruction!r}")
    return embeddings[said.index(instruction)]


def instruction_tokens(config: TextConfig, instruction: str, folder: Path) -> np.ndarray:
    """What `Batch.text` holds of an instruction: [K_text] int32 word ids, or [K_text, dim] float32 embeddings."""
    if config.kind == "words":
        return tokenize(instruction, config.tokens, config.vocabulary)
    return read(folder, instruction)
