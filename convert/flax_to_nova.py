"""The way back: a converted checkpoint to the published layout, for PyTorch.

    python convert/flax_to_nova.py --checkpoint=ckpt/nova --out=nova-again

Tensors get the names, shapes and types that they came with; from float32 parameters, bit for bit. Parameters that
were converted to bfloat16 have lost what that type cannot hold: tensors that came as F32 or F16 are then BF16.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: this folder's siblings, and not its files, are what can be imported
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.pop(1)

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from convert.apply import revert
from convert.destination import refuse_nested, whole
from convert.progress import weights_bar
from convert.published import write_component
from convert.rules import RULES
from convert.source import INDEX, TOKENIZER
from convert.tensors import DTYPES, Kind
from experiments import app
from par_jax import pretrained
from par_jax.errors import UserError
from par_jax.trees import flatten
from par_jax.workdir import write_json

FLAGS = flags.FLAGS
# Rows are written in blocks of about this many bytes.
_BLOCK = 2**22


def define_flags() -> None:
    """The command's options."""
    flags.DEFINE_string("checkpoint", None, "The converted checkpoint.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_bool("overwrite", False, "Replace a checkpoint in the published layout that is at --out.")


def convert_back(checkpoint: Path | str, out: Path | str, overwrite: bool = False) -> None:
    """Writes a converted checkpoint in the published layout.

    Args:
      checkpoint: the converted one.
      out: folder to write.
      overwrite: whether `out` may exist.

    Raises:
      UserError: the checkpoint is damaged, or `out` exists or cannot be written.
    """
    checkpoint = Path(checkpoint)
    refuse_nested(checkpoint, out)
    manifest = pretrained.read_manifest(checkpoint)
    with whole(out, overwrite, INDEX) as folder:
        try:
            write_json(folder / INDEX, manifest["model_index"])
            write_component(folder, "scheduler", manifest["scheduler"])
            entries = {
                name: (entry["config"], {tensor: _kind(*kind) for tensor, kind in entry["tensors"].items()})
                for name, entry in manifest["components"].items()
                if RULES[name]  # no other component can be told from its tensors
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{checkpoint / pretrained.MANIFEST} is damaged ({error!r}): convert the checkpoint again"
            ) from error
        for name, (config, kinds) in entries.items():
            _write_back(checkpoint, folder, name, config, kinds)
        if (checkpoint / TOKENIZER).is_dir():
            shutil.copytree(checkpoint / TOKENIZER, folder / TOKENIZER)
    print(f"{out} is a whole checkpoint")


def _write_back(checkpoint: Path, folder: Path, name: str, config: dict[str, Any], kinds: dict[str, Kind]) -> None:
    """One component; its arrays are gone when the next one's are read."""
    arrays = flatten(pretrained.load(checkpoint, name))
    arrays = {path.replace("/", "."): array for path, array in arrays.items()}
    kinds, changed = _storable(kinds, next(iter(arrays.values())).dtype)
    with weights_bar(name, sum(kind.size for kind in kinds.values())) as bar:
        tensors = ((t, _blocks(view, kinds[t], bar)) for t, view in revert(RULES[name], arrays, kinds))
        write_component(folder, name, config, kinds, tensors)
    print(f"{name}: {len(kinds)} tensors" + (f", {changed} of them BF16 now, not as published" if changed else ""))


def _kind(dtype: str, shape: list[int]) -> Kind:
    return Kind(DTYPES[dtype], tuple(shape))


def _storable(kinds: dict[str, Kind], stored: np.dtype) -> tuple[dict[str, Kind], int]:
    """The published types, or bfloat16 where that is all that was kept; and how many differ from the published."""
    if stored == np.float32:
        return kinds, 0
    changed = sum(kind.dtype != stored for kind in kinds.values())
    return {name: Kind(stored, kind.shape) for name, kind in kinds.items()}, changed


def _blocks(view: np.ndarray, kind: Kind, bar: tqdm) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // max(1, kind.size // max(1, kind.shape[0])))
    for start in range(0, kind.shape[0], rows):
        block = view[start : start + rows].astype(kind.dtype)
        bar.update(block.nbytes)
        yield block


def main() -> None:
    """Flags to `convert_back`."""
    if FLAGS.checkpoint is None or FLAGS.out is None:
        raise UserError("what and where? add --checkpoint=FOLDER and --out=FOLDER")
    jax.config.update("jax_platforms", "cpu")
    convert_back(FLAGS.checkpoint, FLAGS.out, FLAGS.overwrite)


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
