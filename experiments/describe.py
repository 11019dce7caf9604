"""What a preset costs: parameters by part, tokens, arithmetic and memory. Allocates no weights.

python -m experiments.describe --preset=par
python -m experiments.describe --preset=par --json=par.json --batch=8
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import flags

from experiments import app, devices
from experiments.model_flags import define_model_flags, preset
from par_jax.config import Config
from par_jax.costs import Costs, costs
from par_jax.workdir import write_json

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    define_model_flags()
    flags.DEFINE_integer("batch", 1, "Robots that act together.", lower_bound=1)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of weights and cache when acting.")
    flags.DEFINE_string("json", None, "Write the numbers to this file as well.")


def main() -> None:
    """The command."""
    config = preset(FLAGS)
    devices.choose("cpu")
    found = costs(config, FLAGS.batch, jnp.dtype(FLAGS.dtype).itemsize)
    print(table(config, found))
    if FLAGS.json:
        write_json(Path(FLAGS.json), record(config, found))


def record(config: Config, found: Costs) -> dict[str, Any]:
    """The numbers, JSON-able."""
    names = {name: getattr(FLAGS, name) for name in ("policy", "variant", "batch", "dtype")}
    return {"preset": config.name} | names | found.__dict__


def table(config: Config, found: Costs) -> str:
    """The numbers for people."""
    policy = "" if FLAGS.policy == "par" else f", policy {FLAGS.policy}"
    variant = "" if FLAGS.variant == "full" else f", variant {FLAGS.variant}"
    lines = [f"preset {config.name}{policy}{variant}", "", "parameters"]
    lines += [f"  {name:<28}{count / 1e6:>10.2f} M" for name, count in found.parameters.items()]
    lines += [f"  {'together':<28}{sum(found.parameters.values()) / 1e6:>10.2f} M"]
    lines += [f"  {name:<28}{count / 1e6:>10.2f} M" for name, count in found.beside.items()]
    t = found.tokens
    lines += [
        "",
        "tokens",
        f"  {t['text']} text + {t['packages']} x ({t['frame']} frame + {t['action']} action) = {t['total']}",
        f"  {t['frame_encoder']} a frame in the frame encoder",
        "",
        f"acting, {FLAGS.batch} robot{'s' * (FLAGS.batch > 1)} at a time, {FLAGS.dtype}",
    ]
    lines += [f"  {name:<28}{flops / 1e9:>10.1f} GFLOP" for name, flops in found.step_flops.items()]
    lines += [f"  {'together':<28}{sum(found.step_flops.values()) / 1e9:>10.1f} GFLOP"]
    lines += [
        f"  {'predicting the frame as well':<28}{found.frame_flops / 1e9:>10.1f} GFLOP",
        f"  {'weights read':<28}{found.step_weight_bytes / 2**20:>10.1f} MiB",
        f"  {'KV cache':<28}{found.cache_bytes / 2**20:>10.1f} MiB",
        "",
        f"training, batch {config.train.batch} of {config.train.packages} packages, {config.train.dtype}",
        f"  {'a step':<28}{found.train_flops / 1e12:>10.2f} TFLOP",
        f"  {'weights, gradients, Adam, EMA':<30}{found.train_state_bytes / 2**30:>8.2f} GiB",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
