"""A published NOVA checkpoint to Flax.

    python convert/nova_to_flax.py --src=nova-d48w1024-osp480 --out=ckpt/nova
    python convert/nova_to_flax.py --src=BAAI/nova-d48w1024-osp480 --revision=main --out=ckpt/nova --dtype=bfloat16

Prints which tensor went where. Every tensor must find its place and every place its tensor, or nothing is written.
Stopped or killed, it leaves no checkpoint; the same command begins again.
"""

import collections
import concurrent.futures
import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: this folder's siblings, and not its files, are what can be imported
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.pop(1)

import jax
import ml_dtypes
import numpy as np
from absl import flags

from convert.apply import Place, apply, places
from convert.architecture import read_architecture
from convert.destination import refuse_nested, whole
from convert.models import shapes
from convert.progress import weights_bar
from convert.rules import RULES
from convert.source import TOKENIZER, Component, Source, open_source
from convert.tensors import NAMES
from experiments import app
from par_jax import pretrained
from par_jax.errors import UserError
from par_jax.versions import versions

FLAGS = flags.FLAGS
# Layers and blocks that the short table counts instead of listing.
_NUMBERED = re.compile(r"(blocks|layers|resnets|attentions|samplers)\.\d+")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def define_flags() -> None:
    """The command's options."""
    flags.DEFINE_string("src", None, "The checkpoint's folder in diffusers' layout, or its hub id owner/name.")
    flags.DEFINE_string("revision", None, "The hub's branch, tag or commit; its main branch by default.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Type of the converted parameters.")
    flags.DEFINE_bool("overwrite", False, "Replace a converted checkpoint that is at --out.")
    flags.DEFINE_enum("table", "short", ["short", "full"], "Layers counted, or a line for each tensor.")


def convert(
    src: str,
    out: Path | str,
    dtype: str = "float32",
    revision: str | None = None,
    overwrite: bool = False,
    table: str = "short",
) -> None:
    """Converts a checkpoint; prints the table.

    Args:
      src: folder or hub id.
      out: folder to write.
      dtype: "float32" or "bfloat16".
      revision: the hub's.
      overwrite: whether `out` may exist.
      table: "short" or "full".

    Raises:
      UserError: anything is missing, damaged, unknown or does not fit; `out` is then as it was.
    """
    refuse_nested(src, out)
    with whole(out, overwrite, pretrained.MANIFEST) as folder:
        source = open_source(src, revision)
        architecture = read_architecture(source)
        configs = {"transformer": architecture.nova, "vae": architecture.vae, "text_encoder": architecture.text_encoder}
        models = {name: shapes(config) for name, config in configs.items() if config is not None}
        # Before the first array is made, whatever does not fit is told.
        found = {name: places(RULES[name], source.components[name].tensors, model) for name, model in models.items()}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            checksums = pool.submit(source.checksums)
            components = {}
            for name, model in models.items():
                _print_table(name, source.components[name], found[name], model, table)
                components[name] = _convert(folder, name, source.components[name], model, DTYPES[dtype])
            _copy_tokenizer(source, folder)
            manifest = _manifest(source, dtype, components) | {"files": checksums.result()}
        pretrained.write_config(folder, architecture, manifest)
    _print_end(source, out, components, dtype)


def _convert(
    folder: Path, name: str, component: Component, model: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> dict[str, Any]:
    """One component, from its files to the checkpoint; what the manifest says of it."""
    size = _parameters(model) * dtype.itemsize
    with weights_bar(name, size) as bar:
        arrays = apply(RULES[name], component.tensors, model, dtype, bar.update)
    checksums = pretrained.write_params(folder, name, {path.replace(".", "/"): arrays[path] for path in arrays})
    tensors = {key: [NAMES[tensor.dtype], list(tensor.shape)] for key, tensor in component.tensors.items()}
    return {
        "parameters": _parameters(model),
        "arrays": len(model),
        "checksums": checksums,
        "tensors": tensors,
        "config": component.config,
    }


def _manifest(source: Source, dtype: str, components: dict[str, Any]) -> dict[str, Any]:
    scheduler = source.components["scheduler"].config
    return {
        "source": source.name,
        "revision": source.revision,
        "dtype": dtype,
        "versions": versions(("par_jax", "jax", "flax", "orbax-checkpoint", "numpy", "safetensors", "torch")),
        "model_index": source.index,
        "scheduler": scheduler,
        "tokenizer": bool(source.tokenizer),
        "components": components,
    }


def _copy_tokenizer(source: Source, folder: Path) -> None:
    for path in source.tokenizer:
        target = folder / TOKENIZER / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _print_table(
    name: str, component: Component, found: Mapping[str, Place], model: Mapping[str, tuple[int, ...]], table: str
) -> None:
    print(f"\n{name}: {len(found)} tensors -> {len(model)} arrays")
    if table == "full":
        for tensor, place in found.items():
            row = "" if place.layer is None else f"[{place.layer}]"
            print(f"  {tensor} {list(place.shape)} -> {place.path}{row} {list(model[place.path])}")
        return
    groups = collections.defaultdict(list)
    for tensor, place in found.items():
        groups[_NUMBERED.sub(r"\1.*", tensor), _NUMBERED.sub(r"\1.*", place.path)].append(math.prod(place.shape))
    widths = max(len(left) for left, _ in groups), max(len(right) for _, right in groups)
    for (left, right), sizes in groups.items():
        count = f"{len(sizes)} tensor{'s' if len(sizes) > 1 else ''}"
        print(f"  {left:<{widths[0]}} -> {right:<{widths[1]}} {count:>11} {sum(sizes):>13,} parameters")


def _print_end(source: Source, out: Path | str, components: dict[str, Any], dtype: str) -> None:
    print()
    for name, entry in components.items():
        print(
            f"{name}: {entry['parameters']:,} parameters as {dtype}; "
            f"all {len(entry['tensors'])} tensors used, all {entry['arrays']} arrays filled, nothing left over"
        )
    absent = [] if "text_encoder" in components else ["text_encoder"]
    absent += [] if source.tokenizer else [TOKENIZER]
    if absent:
        print(f"{source.name} has no {' and no '.join(absent)}: converted without, so it cannot read prompts")
    print(f"{out} is a whole checkpoint")


def _parameters(model: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in model.values())


def main() -> None:
    """Flags to `convert`."""
    if FLAGS.src is None or FLAGS.out is None:
        raise UserError("what and where? add --src=FOLDER or --src=owner/name, and --out=FOLDER")
    jax.config.update("jax_platforms", "cpu")
    convert(FLAGS.src, FLAGS.out, FLAGS.dtype, FLAGS.revision, FLAGS.overwrite, FLAGS.table)


if __name__ == "__main__":
    define_flags()
    app.run(main)
