"""Safetensors files (https://github.com/huggingface/safetensors): read tensor by tensor, written tensor by tensor.

Read without a memory map, whose pages would count as this process's memory. A file's own structure is all that can
be checked: the format has no checksums, so a weight changed in place is seen only where it is no longer finite.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from par_jax.errors import UserError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 10**8


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file; indexing it with a slice of rows reads them.

    Attributes:
      path: of the file.
      dtype: of the numbers there.
      shape: PyTorch's.
      offset: of its first byte in the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        made = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.offset + start * row)
            if file.readinto(made.view(np.uint8).reshape(-1).data) != made.nbytes:
                raise UserError(f"{self.path} has become shorter while it was read: fetch it again")
        return made


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, none of them read yet.

    Raises:
      UserError: the file is truncated or its header is not one that describes all of it, or a tensor is of a type
        that weights do not have.
    """
    with path.open("rb") as file:
        total = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > min(total - 8, _HEADER_LIMIT):
            raise _damaged(path, f"its header would take {length} bytes of {total}")
        header = file.read(length)
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique)
        entries.pop("__metadata__", None)
        spans = sorted((_span(entry), name) for name, entry in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be understood: {str(error)[:100]}") from error
    end = 0
    for (start, stop), name in spans:
        if start != end:
            raise _damaged(path, f"{name} begins at byte {start}, where {end} is due")
        end = stop
    if 8 + length + end != total:
        raise _damaged(path, f"its tensors take {end} bytes, {total - 8 - length} are there")
    made = {}
    for (start, stop), name in spans:
        kind, shape = entries[name]["dtype"], entries[name]["shape"]
        if kind not in DTYPES:
            raise UserError(f"{path}: {name} is of type {kind}: weights are F32, F16 or BF16")
        if stop - start != math.prod(shape) * DTYPES[kind].itemsize:
            raise _damaged(path, f"{name} has {stop - start} bytes, which its shape {shape} does not fill")
        made[name] = Stored(path, DTYPES[kind], tuple(shape), 8 + length + start)
    return made


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands there twice")
    return made


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"an entry has the keys {', '.join(sorted(entry))}")
    if any(type(number) is not int or number < 0 for number in (start, stop, *entry["shape"])):
        raise ValueError("an offset or a length is no natural number")
    return start, stop


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is truncated or damaged ({reason}): fetch it again")


@dataclasses.dataclass(frozen=True)
class Kind:
    """Type and shape of a tensor to write."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, kinds: Mapping[str, Kind], tensors: Iterable[tuple[str, Iterable[np.ndarray]]]
) -> None:
    """Writes a file as PyTorch's programs do.

    Args:
      path: the file.
      kinds: of every tensor.
      tensors: every name once, with the tensor in blocks of rows of the type that `kinds` says.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, kind in kinds.items():
        starts[name] = end
        end += kind.size
        entries[name] = {"dtype": NAMES[kind.dtype], "shape": kind.shape, "data_offsets": (starts[name], end)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
        for name, blocks in tensors:
            file.seek(8 + len(header) + starts[name])
            for block in blocks:
                file.write(np.ascontiguousarray(block).view(np.uint8).reshape(-1).data)
