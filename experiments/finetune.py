"""Trains a policy on demonstrations; goes on where the same command was stopped.

python -m experiments.finetune --task=pushcube --preset=tiny --data=data/pushcube --workdir=runs/pushcube

Without a trained frame VAE (--vae, or workdir/vae) it trains that first.
"""

import dataclasses
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from experiments.app import run
from experiments.model_flags import define_model_flags, preset
from par_jax.config import Config, TrainConfig
from par_jax.errors import UserError
from par_jax.tasks import get_task

if TYPE_CHECKING:
    from par_jax.runs import Run
    from par_jax.train import Result

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("task", None, "pushcube, pickcube or stackcube.")
    define_model_flags()
    flags.DEFINE_string("data", None, "Demonstrations, as experiments.collect writes them; data/<task> by default.")
    flags.DEFINE_string("workdir", None, "The run's folder; runs/<task> by default.")
    flags.DEFINE_string("stage", "policy", "policy, or vae: the frame VAE alone, into workdir/vae.")
    flags.DEFINE_string("init", None, "A converted NOVA checkpoint, or a run, to begin with; its frame VAE is used.")
    flags.DEFINE_string("vae", None, "Folder of a trained VAE to use; workdir/vae by default.")
    flags.DEFINE_integer("steps", None, "Steps of the stage; the preset's by default.", lower_bound=1)
    flags.DEFINE_integer("vae_steps", None, "Steps of a VAE trained on the way to a policy.", lower_bound=1)
    flags.DEFINE_integer("batch", None, "Sequences or pictures a step; the preset's by default.", lower_bound=1)
    flags.DEFINE_float("learning_rate", None, "Peak of the schedule; the preset's by default.", lower_bound=0.0)
    flags.DEFINE_string("dtype", None, "float32 or bfloat16: of the computation; the preset's by default.")
    flags.DEFINE_integer("seed", 0, "Of parameters, data order and noise.", lower_bound=0)
    flags.DEFINE_integer("log_every", 20, "Steps a line of metrics.", lower_bound=1)
    flags.DEFINE_integer("checkpoint_every", 250, "Steps a checkpoint.", lower_bound=1)
    flags.DEFINE_integer("eval_every", 500, "Steps between looks at held-out episodes.", lower_bound=1)
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu.")


def keep_compiled(workdir: Path) -> None:
    """Keeps compiled programs in the run's folder, or in $JAX_COMPILATION_CACHE_DIR: a resumed run starts soon."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def changed(train: TrainConfig, **values: Any) -> TrainConfig:
    """`train` with the values that are not None."""
    return dataclasses.replace(train, **{name: value for name, value in values.items() if value is not None})


def configuration() -> Config:
    """The preset with the flags' changes to the stage that is asked for.

    Raises:
      UserError: an unknown name, or flags that do not go together.
    """
    if FLAGS.stage not in ("policy", "vae"):
        raise UserError(f"unknown stage {FLAGS.stage!r}: choose policy or vae")
    if FLAGS.dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"unknown dtype {FLAGS.dtype!r}: choose float32 or bfloat16")
    config = preset(FLAGS)
    if config.lora.rank and FLAGS.init is None:
        raise UserError("LoRA adapts weights that are there: give --init, or --lora_rank=0 to train all weights")
    if config.text.kind == "phi" and FLAGS.init is None:
        raise UserError(
            f"preset {config.name!r} begins with converted NOVA: give --init a folder that convert/nova_to_flax.py made"
        )
    if FLAGS.init is not None and (FLAGS.stage == "vae" or FLAGS.vae is not None):
        raise UserError("--init brings its own frame VAE: leave out --stage=vae and --vae")
    asked = {
        "steps": FLAGS.steps,
        "batch": FLAGS.batch,
        "learning_rate": FLAGS.learning_rate,
        "dtype": FLAGS.dtype,
    }
    if FLAGS.stage == "vae":
        return dataclasses.replace(config, vae_train=changed(config.vae_train, **asked))
    return dataclasses.replace(
        config,
        train=changed(config.train, **asked),
        vae_train=changed(config.vae_train, steps=FLAGS.vae_steps),
    )


def end(result: "Result", workdir: Path) -> None:
    """Says how training ended; exits with 128 + the signal's number if one stopped it."""
    if result.signal is not None:
        print(f"stopped at step {result.step}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + result.signal)
    print(f"finished: {result.step} steps; the checkpoint is in {workdir}", flush=True)


def main() -> None:
    """Trains what the flags ask for."""
    logging.set_verbosity(logging.WARNING)  # JAX and orbax narrate
    if FLAGS.task is None:
        raise UserError("say which task to learn: --task=pushcube, pickcube or stackcube")
    get_task(FLAGS.task)
    config = configuration()
    signal.signal(signal.SIGTERM, _terminated)

    from experiments import devices  # jax is slow to import: mistakes in the flags are told before
    from par_jax.runs import Run

    devices.choose(FLAGS.device)

    workdir = Path(FLAGS.workdir or f"runs/{FLAGS.task}")
    wanted = Run(
        task=FLAGS.task,
        config=config,
        data=Path(FLAGS.data or f"data/{FLAGS.task}"),
        workdir=workdir,
        seed=FLAGS.seed,
        init=Path(FLAGS.init) if FLAGS.init else None,
        log_every=FLAGS.log_every,
        checkpoint_every=FLAGS.checkpoint_every,
        eval_every=FLAGS.eval_every,
    )
    wanted.episodes()
    keep_compiled(workdir)
    try:
        train(wanted)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"cannot write to {workdir}: {error.strerror}; mend that and type the same command again, "
            "or give another --workdir"
        ) from error


def train(wanted: "Run") -> None:
    """Trains the stage that is asked for, and the frame VAE before it where there is none."""
    from par_jax import beginning, runs, stages

    vae = dataclasses.replace(wanted, workdir=wanted.workdir / "vae")
    if wanted.init is not None:
        end(stages.train_policy(beginning.adopt(wanted)), wanted.workdir)
        return
    if FLAGS.stage == "vae":
        end(stages.train_vae(vae), vae.workdir)
        return
    if FLAGS.vae is not None and Path(FLAGS.vae).resolve() != vae.workdir.resolve():
        runs.adopt_vae(Path(FLAGS.vae), vae.workdir)
    if not runs.is_trained(vae.workdir):
        print(f"{vae.workdir} holds no trained frame VAE: training one first", flush=True)
        end(stages.train_vae(vae), vae.workdir)
    end(stages.train_policy(wanted), wanted.workdir)


def _terminated(*_: object) -> None:
    sys.stderr.write("stopped; the same command goes on from here\n")
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    define_flags()
    run(main)
