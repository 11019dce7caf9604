"""A converted checkpoint's folder: what it holds, written and read without PyTorch.

```
config.json          the model's configuration
manifest.json        where it comes from, and the checksums of its arrays
params/<component>/  one orbax checkpoint each: transformer, vae, text_encoder (where the source has one)
tokenizer/           the tokenizer's files (where the source has them)
```
The folder is written under another name and renamed when it is whole, by `convert.destination`.
"""

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from par_jax.checkpoint import orbax, reader
from par_jax.config import NovaConfig, PhiConfig, VAEConfig, to_dict
from par_jax.errors import UserError
from par_jax.trees import checksum, flatten, nest, string_keys
from par_jax.workdir import write_json

FORMAT = 1
CONFIG, MANIFEST = "config.json", "manifest.json"
COMPONENTS = ("transformer", "vae", "text_encoder")
_GROUP = 2**28


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What `config.json` says.

    Attributes:
      nova: of the component "transformer".
      vae: of the component "vae".
      text_encoder: of the component "text_encoder", or None where the source has none.
      scheduler: `scheduler_config.json` as published.
    """

    nova: NovaConfig
    vae: VAEConfig
    text_encoder: PhiConfig | None
    scheduler: dict[str, Any]


def write_params(folder: Path, component: str, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Writes one component's parameters without a second copy of them in memory.

    Args:
      folder: the checkpoint's.
      component: one of `COMPONENTS`.
      arrays: by name, the parts joined with `/`.

    Returns:
      The arrays' checksums.

    Raises:
      OSError: among others where the disk has no room for them, before anything is written.
    """
    ocp = orbax()
    path = folder.absolute() / "params" / component
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < sum(array.nbytes for array in arrays.values()) + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    # Orbax would copy every array first, and the compressor once more: weights do not compress.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False))
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    with ocp.Checkpointer(handler) as writer:
        writer.save(path, args=ocp.args.PyTreeSave(string_keys(nest(arrays))))
    return {name: checksum(array) for name, array in arrays.items()}


def write_config(folder: Path, architecture: Architecture, manifest: dict[str, Any]) -> None:
    """Writes `config.json` and `manifest.json`, beside the parameters that are there already."""
    values = {
        "nova": to_dict(architecture.nova),
        "vae": to_dict(architecture.vae),
        "text_encoder": None if architecture.text_encoder is None else to_dict(architecture.text_encoder),
        "scheduler": architecture.scheduler,
    }
    write_json(folder / CONFIG, {"format": FORMAT, **values})
    write_json(folder / MANIFEST, {"format": FORMAT, **manifest})


def read_config(folder: Path | str) -> Architecture:
    """What a converted checkpoint is.

    Raises:
      UserError: the folder is no converted checkpoint, is damaged, or is of another version.
    """
    folder = Path(folder)
    values = _read_json(folder, CONFIG)
    try:
        text_encoder = values["text_encoder"]
        return Architecture(
            NovaConfig(**_tuples(values["nova"])),
            VAEConfig(**_tuples(values["vae"])),
            None if text_encoder is None else PhiConfig(**_tuples(text_encoder)),
            dict(values["scheduler"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG} does not fit this version of par_jax ({error}): convert the checkpoint again"
        ) from error


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Where a converted checkpoint comes from, as `convert.nova_to_flax` wrote it.

    Raises:
      UserError: as `read_config`.
    """
    return _read_json(Path(folder), MANIFEST)


def load(folder: Path | str, component: str) -> dict[str, Any]:
    """One component's parameters: nested dicts of numpy arrays in the type they were converted to.

    Raises:
      UserError: the checkpoint has no such component, or it is damaged.
    """
    folder = Path(folder)
    try:
        entry = read_manifest(folder)["components"].get(component)
        sums = None if entry is None else dict(entry["checksums"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder / MANIFEST, error) from error
    if sums is None:
        raise UserError(f"{folder} holds no {component}: the folder that it was converted from has none")
    path = folder.absolute() / "params" / component
    if not path.is_dir():
        raise UserError(f"{path} is missing: convert the checkpoint again")
    try:
        arrays = _read_arrays(path)
    except Exception as error:  # orbax and tensorstore raise whatever they meet in a damaged file
        raise _damaged(path, error) from error
    wrong = sorted(set(arrays) ^ set(sums)) or [name for name in sums if checksum(arrays[name]) != sums[name]]
    if wrong:
        raise _damaged(path, f"{wrong[0]} is not what was written")
    return nest(arrays)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    ocp = orbax()
    arrays: dict[str, np.ndarray] = {}
    with reader() as opened:
        for names in _groups(flatten(opened.metadata(path).item_metadata.tree)):
            wanted = string_keys(nest(dict.fromkeys(names, 0)))
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            arrays |= flatten(
                opened.restore(path, args=ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True))
            )
    return arrays


def _groups(stored: Mapping[str, Any]) -> Iterator[list[str]]:
    """Arrays to read together: orbax holds what it reads twice."""
    group: list[str] = []
    size = 0
    for name, array in stored.items():
        nbytes = math.prod(array.shape) * np.dtype(array.dtype).itemsize
        if group and size + nbytes > _GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += nbytes
    if group:
        yield group


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"{folder} is no converted checkpoint ({name} is missing): make one with python convert/nova_to_flax.py"
        )
    try:
        values = json.loads(path.read_text())
        version = values["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if version != FORMAT:
        raise UserError(
            f"{path} is of format {version!r}, and this version of par_jax reads {FORMAT}: convert the checkpoint again"
        )
    return values


def _damaged(path: Path, reason: Any) -> UserError:
    said = str(reason).strip().split("\n")[0][:160]
    return UserError(f"{path} is damaged ({said}): convert the checkpoint again")


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
