"""Prompts to token ids, as a checkpoint's tokenizer/ folder says (the `tokenizers` library)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from par_jax.errors import UserError

# The one special token of GPT-2's vocabulary, which Phi has taken over.
END = "<|endoftext|>"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads tokenizer.json, or else vocab.json and merges.txt (byte-level BPE; added_tokens.json if it is there).

    Raises:
      UserError: neither is there, or what is there cannot be read.
    """
    folder = Path(folder)
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise UserError(
            f"{folder} has no tokenizer: put a tokenizer.json there, or vocab.json and merges.txt,"
            " as the language model was published with"
        )
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            tokenizer = _byte_level(vocabulary, merges, folder / "added_tokens.json")
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        source = whole if whole.is_file() else vocabulary
        raise UserError(f"{source} cannot be read as a tokenizer ({error}): fetch it again") from error
    tokenizer.no_padding()
    return tokenizer


def _byte_level(vocabulary: Path, merges: Path, added: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(END) is not None:
        tokenizer.add_special_tokens([END])
    ids = json.loads(added.read_text()) if added.is_file() else {}
    # The library numbers added tokens in the order in which they come, behind the vocabulary.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sorted(ids, key=lambda token: ids[token])])
    wrong = [token for token, at in ids.items() if tokenizer.token_to_id(token) != at]
    if wrong:
        raise UserError(f"{added} does not fit {vocabulary}: the token {wrong[0]!r} would not get the id it says")
    return tokenizer


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts cut to `length` tokens: ids [B, length] int32, 0 behind them, and their numbers [B] int32."""
    tokenizer.enable_truncation(length)
    found = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    ids = np.zeros((len(found), length), np.int32)
    for row, tokens in zip(ids, found, strict=True):
        row[: len(tokens)] = tokens
    return ids, np.array([len(tokens) for tokens in found], np.int32)
