"""A NOVA checkpoint with random weights, in the published layout and sizes.

    python -m convert.random_nova --preset=nova-d48w1024-osp480 --out=random/nova-d48w1024-osp480
    python -m convert.random_nova --preset=nova-d48w1024-osp480 --components=transformer,vae,scheduler --out=...

So that time, memory and size can be tried without the weights. A tokenizer cannot be made up: there is none.
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from convert.apply import torch_shapes
from convert.architecture import phi_config, transformer_config, vae_config
from convert.destination import whole
from convert.models import shapes
from convert.progress import weights_bar
from convert.published import PRESETS, model_index, write_component
from convert.rules import RULES
from convert.source import FILES, INDEX, REQUIRED
from convert.tensors import DTYPES, Kind
from convert.values import Values
from experiments import app
from par_jax.config import NovaConfig, PhiConfig, VAEConfig
from par_jax.errors import UserError
from par_jax.workdir import write_json

FLAGS = flags.FLAGS
_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Numbers drawn at a time.
_BLOCK = 2**22


def define_flags() -> None:
    """The command's options."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "The published checkpoint whose sizes it has.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_list("components", list(FILES), "Those to write; text_encoder is the largest by far.")
    flags.DEFINE_integer("seed", 0, "Of the weights.", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", list(_KINDS), "Type of the weights.")
    flags.DEFINE_bool("overwrite", False, "Replace a checkpoint that is at --out.")


def write_random(
    configs: Mapping[str, dict[str, Any]],
    out: Path | str,
    seed: int = 0,
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint of random weights.

    Args:
      configs: published configuration of each component that it shall have.
      out: folder to write.
      seed: of the weights; a tensor depends on it and on the tensor's name.
      dtype: "float32", "float16" or "bfloat16".
      overwrite: whether `out` may exist.

    Raises:
      UserError: `out` exists or cannot be written.
    """
    with whole(out, overwrite, INDEX) as folder:
        write_json(folder / INDEX, model_index(configs))
        for name, config in configs.items():
            if name not in RULES:
                write_component(folder, name, config)
                continue
            kinds = {
                tensor: Kind(DTYPES[_KINDS[dtype]], shape) for tensor, shape in published_shapes(name, config).items()
            }
            with weights_bar(name, sum(kind.size for kind in kinds.values())) as bar:
                tensors = ((tensor, _draw(tensor, kind, seed, bar)) for tensor, kind in kinds.items())
                write_component(folder, name, config, kinds, tensors)


def published_shapes(name: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of every tensor that a component of this configuration has."""
    values = Values(config, name)
    ours: NovaConfig | VAEConfig | PhiConfig
    if name == "transformer":
        ours = transformer_config(values)
    elif name == "vae":
        ours = vae_config(values, config["_class_name"])
    else:
        ours = phi_config(values)
    channels = ours.latent_channels if isinstance(ours, NovaConfig) else 0
    return torch_shapes(RULES[name], shapes(ours), channels)


def _draw(name: str, kind: Kind, seed: int, bar: tqdm) -> Iterator[np.ndarray]:
    """Numbers that keep activations about 1: weights by their inputs, norms about 1, the rest small."""
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    count = int(np.prod(kind.shape))
    matrix = len(kind.shape) > 1 and name.endswith(".weight")
    deviation = np.float32(int(np.prod(kind.shape[1:])) ** -0.5 if matrix else 0.02)
    mean = np.float32(len(kind.shape) == 1 and name.endswith(".weight"))
    for start in range(0, count, _BLOCK):
        block = random.standard_normal(min(_BLOCK, count - start), np.float32) * deviation + mean
        made = block.astype(kind.dtype, copy=False)
        bar.update(made.nbytes)
        yield made


def main() -> None:
    """Flags to `write_random`."""
    if FLAGS.preset is None or FLAGS.out is None:
        raise UserError(f"which, and where? add --preset= ({', '.join(PRESETS)}) and --out=FOLDER")
    unknown = sorted(set(FLAGS.components) - set(FILES))
    missing = sorted(set(REQUIRED) - set(FLAGS.components))
    if unknown or missing:
        raise UserError(
            f"--components={','.join(FLAGS.components)}: known are {', '.join(FILES)}, and {', '.join(REQUIRED)} "
            "must be among them"
        )
    jax.config.update("jax_platforms", "cpu")
    configs = {name: config for name, config in PRESETS[FLAGS.preset].items() if name in FLAGS.components}
    write_random(configs, FLAGS.out, FLAGS.seed, FLAGS.dtype, FLAGS.overwrite)
    print(f"{FLAGS.out}: random weights of {FLAGS.preset} ({', '.join(configs)}); no tokenizer")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
