"""How fast a preset acts and trains here, how near that is to what the device can do, and PyTorch beside it.

python -m experiments.benchmark --preset=tiny --peer=torch --train
python -m experiments.benchmark --preset=par --compile
python -m experiments.benchmark --suite=gpu --json=gpu.json
"""

import dataclasses
import functools
import os
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import app, devices
from experiments.model_flags import define_model_flags, preset
from par_jax.bench import report, shapes, timing
from par_jax.bench.hardware import name, peaks
from par_jax.bench.question import Question
from par_jax.bench.subject import PARTS
from par_jax.config import PRESETS, Config
from par_jax.errors import UserError
from par_jax.nn.stack import KEPT
from par_jax.versions import versions
from par_jax.workdir import write_json

FLAGS = flags.FLAGS
PACKAGES = ("par_jax", "jax", "jaxlib", "flax", "numpy", "torch")


def define_flags() -> None:
    """The command's flags."""
    define_model_flags()
    flags.DEFINE_string("checkpoint", None, "A trained run's --workdir, or a released folder, with its weights.")
    flags.DEFINE_integer("batch", 1, "Robots that act together.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of weights and computation; the preset's by default.")
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "gpu"], "Where to compute.")
    flags.DEFINE_enum("peer", None, ["torch"], "Time the same model in PyTorch as well.")
    flags.DEFINE_list("parts", None, f"Only these: {', '.join(PARTS)}.")
    flags.DEFINE_bool("frames", False, "Time the prediction of a frame as well.")
    flags.DEFINE_bool("train", False, "Time the training step as well.")
    flags.DEFINE_integer("train_batch", None, "Sequences of a training step; the preset's by default.", lower_bound=1)
    flags.DEFINE_enum("remat", None, list(KEPT), "Rematerialisation of training; the preset's by default.")
    flags.DEFINE_bool("compile", False, "Only compile, for shapes alone: seconds, and memory by the compiler.")
    flags.DEFINE_string("topology", None, "With --compile: a TPU that need not be here, as v5p:2x2x1; needs libtpu.")
    flags.DEFINE_integer("steps", None, "Timed steps; by default as many as fit four seconds.", lower_bound=2)
    flags.DEFINE_integer("rounds", 9, "Rounds in which what is compared takes turns.", lower_bound=3)
    flags.DEFINE_bool("one_thread", False, "One thread, and the processor's time in place of the clock's: CPUs alone.")
    flags.DEFINE_float("peak_tflops", None, "What the device can do, in TFLOP/s of dense products.", lower_bound=0.0)
    flags.DEFINE_float("bandwidth", None, "What its memory can do, in GB/s.", lower_bound=0.0)
    flags.DEFINE_enum("suite", None, ["gpu"], "All that is measured on a GPU, one after the other.")
    flags.DEFINE_string("json", None, "Write the numbers to this file as well.")


def main() -> None:
    """The command."""
    if FLAGS.batch < 1:
        raise UserError(f"--batch={FLAGS.batch}: at least one robot acts")
    if unknown := sorted(set(FLAGS.parts or ()) - set(PARTS)):
        raise UserError(f"unknown part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    if FLAGS.suite and FLAGS.device == "auto":
        FLAGS.device = "gpu"
    if FLAGS.peer:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two share the device's memory
    if FLAGS.one_thread:
        _one_thread()
    devices.choose(FLAGS.device)
    asked = _suite() if FLAGS.suite else [_single()]
    device = name()
    threads = "one" if FLAGS.one_thread else "all"
    found: dict[str, Any] = {"device": device, "threads": threads, "versions": versions(PACKAGES), "runs": []}
    print(f"on {device}{', one thread, processor time' * FLAGS.one_thread}", flush=True)
    if not FLAGS.one_thread and FLAGS.device != "gpu" and os.getloadavg()[0] > 0.5:
        print(
            f"  other programs are running (load {os.getloadavg()[0]:.1f}): --one_thread bears that better", flush=True
        )
    for question in asked:
        if FLAGS.compile and FLAGS.topology:
            found["runs"].append(shapes.for_tpu(question.config, question.batch, question.dtype, FLAGS.topology))
        elif FLAGS.compile:
            found["runs"].append(shapes.measured(question.config, question.batch, question.dtype))
        else:
            limits = functools.partial(peaks, question.dtype, FLAGS.peak_tflops, FLAGS.bandwidth)
            found["runs"].append(report.run(question, limits))
        if FLAGS.json:
            write_json(Path(FLAGS.json), found)


def _one_thread() -> None:
    """For a machine that has other work to do: threads would wait for each other's turn."""
    if FLAGS.device == "gpu":
        raise UserError("--one_thread is for CPUs: leave it out on a GPU")
    FLAGS.device = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    timing.CLOCK = time.process_time


def _single() -> Question:
    config = _trained(preset(FLAGS))
    return Question(
        config=config,
        checkpoint=FLAGS.checkpoint and Path(FLAGS.checkpoint),
        batch=FLAGS.batch,
        dtype=config.train.dtype,
        peer=FLAGS.peer is not None,
        parts=tuple(FLAGS.parts or PARTS),
        frames=FLAGS.frames,
        train=FLAGS.train,
        steps=FLAGS.steps,
        rounds=FLAGS.rounds,
    )


def _trained(config: Config) -> Config:
    given = {"batch": FLAGS.train_batch, "remat": FLAGS.remat, "dtype": FLAGS.dtype}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def _suite() -> list[Question]:
    """Both full-size presets in bfloat16 with 10 denoising steps: one robot with training, then 32."""
    asked = []
    for title in ("par", "physgen"):
        config = PRESETS[title]
        config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, action_steps=10))
        for batch in (1, 32):
            asked.append(Question(config, batch=batch, dtype="bfloat16", peer=True, train=batch == 1, rounding=True))
    return asked


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
