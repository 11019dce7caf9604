"""PyTorch's `.bin` files: tensors only. What else a pickle may hold, above all code, is refused."""

import ctypes
import dataclasses
import mmap
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.tensors import DTYPES
from par_jax.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A tensor in a memory-mapped file; indexing it with a slice of rows reads them."""

    tensor: "torch.Tensor"
    dtype: np.dtype
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        import torch

        part = self.tensor[rows]
        # numpy has no bfloat16 that torch knows.
        made = part.contiguous().view(torch.int16) if part.dtype == torch.bfloat16 else part
        made = np.array(made.numpy()).view(self.dtype)
        _forget(part)
        return made


def read_bin(path: Path) -> dict[str, Mapped]:
    """The tensors of a file, none of them read yet.

    Raises:
      UserError: the file is damaged, holds anything but tensors, or is older than PyTorch 1.6.
    """
    import torch

    try:
        values = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {named[1]}" if named else "it is not a plain dictionary of tensors"
        raise UserError(
            f"{path} was not opened: besides weights it holds Python objects, which may run code ({what}); "
            "use a safetensors file, or one with the tensors alone"
        ) from error
    except Exception as error:  # torch raises whatever it meets in a damaged file
        said = str(error).strip().split("\n")[0][:160]
        if "_use_new_zipfile_serialization" in str(error):
            raise UserError(f"{path} is of a format older than PyTorch 1.6: save it again as safetensors") from error
        raise UserError(f"{path} is truncated or damaged ({said}): fetch it again") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path} is no dictionary of tensors: save the model's state_dict()")
    return {name: _mapped(path, name, value) for name, value in values.items()}


def _mapped(path: Path, name: str, value: Any) -> Mapped:
    import torch

    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.dtype not in kinds:
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"{path}: {name} is of type {kind}: weights are dense tensors of F32, F16 or BF16")
    return Mapped(value.detach(), DTYPES[kinds[value.dtype]], tuple(value.shape))


def _forget(part: "torch.Tensor") -> None:
    """Gives the pages of a mapped file back: they would count as this process's memory until it ends."""
    first = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (part.data_ptr() + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if part.is_contiguous() and last > first:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), getattr(mmap, "MADV_DONTNEED", 4))
