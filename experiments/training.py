"""What finetune, pretrain and encode share: the flags of a training run, and the run that they ask for."""

import contextlib
import dataclasses
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from experiments.model_flags import define_model_flags, preset
from par_jax import variants
from par_jax.config import Config, TrainConfig
from par_jax.errors import UserError
from par_jax.tasks import get_task

if TYPE_CHECKING:
    from par_jax.runs import Run

FLAGS = flags.FLAGS

# Values of the flags that choose by name.
CHOICES = {
    "stage": ("policy", "vae"),
    "optimizer": ("adamw", "muon"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "dots"),
}


# Flags that are shares, as `TrainConfig` has them.
SHARES = {
    "history_dropout": "Share of sequences that see nothing of the past",
    "action_dropout": "Share of sequences that see of the past its frames alone",
    "frame_share": "Share of a batch's frames on which the frame loss is estimated",
    "start_share": "Share of sequences that begin at their episode's first frame",
}


def define_flags(videos: bool = False) -> None:
    """The flags of a training run; of videos, or of demonstrations of tasks."""
    if not videos:
        flags.DEFINE_list("task", None, "pushcube, pickcube or stackcube; or several, for one policy.")
    define_model_flags()
    flags.DEFINE_list("data", None, "Demonstrations, a folder a task, of experiments.collect; data/<task> by default.")
    flags.DEFINE_string("workdir", None, "The run's folder; runs/<task> by default.")
    flags.DEFINE_string("stage", "policy", "policy, or vae: the frame VAE alone, into workdir/vae.")
    flags.DEFINE_string(
        "init", None, "Converted NOVA, a run, or a released policy, to begin with; its frame VAE is used."
    )
    flags.DEFINE_boolean("keep_scale", False, "Scale actions as --init does, and not by the range of --data.")
    flags.DEFINE_string(
        "vae", None, "A trained VAE to use; with --stage=vae one to train on, or a released policy to decode for."
    )
    flags.DEFINE_integer("steps", None, "Steps of the stage; the preset's by default.", lower_bound=1)
    flags.DEFINE_integer("vae_steps", None, "Steps of a VAE trained on the way to a policy.", lower_bound=1)
    flags.DEFINE_integer("batch", None, "Sequences or pictures a step; the preset's by default.", lower_bound=1)
    flags.DEFINE_integer("accumulate", None, "Parts of a batch, computed one after the other.", lower_bound=1)
    flags.DEFINE_string("optimizer", None, "adamw, or muon for the blocks' kernels; the preset's by default.")
    flags.DEFINE_float("learning_rate", None, "Peak of the schedule; the preset's by default.", lower_bound=0.0)
    flags.DEFINE_integer("packages", None, "Packages of a training sequence; the preset's by default.", lower_bound=1)
    for name, told in SHARES.items():
        flags.DEFINE_float(name, None, f"{told}; the preset's by default.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_float("action_noise", None, "Deviation of noise on executed actions.", lower_bound=0.0)
    flags.DEFINE_integer("picture_shift", None, "Most pixels by which an episode's crop lies off.", lower_bound=0)
    flags.DEFINE_string("dtype", None, "float32 or bfloat16: of the computation; the preset's by default.")
    flags.DEFINE_string("remat", None, "What is computed again to save memory: none, full (whole blocks) or dots.")
    flags.DEFINE_integer("seed", 0, "Of parameters, data order and noise.", lower_bound=0)
    flags.DEFINE_integer("log_every", 20, "Steps a line of metrics.", lower_bound=1)
    flags.DEFINE_integer("checkpoint_every", 250, "Steps a checkpoint.", lower_bound=1)
    flags.DEFINE_integer("eval_every", 500, "Steps between looks at held-out episodes.", lower_bound=1)
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu.")
    flags.DEFINE_string("mesh", None, "Devices to train on, as data:4,fsdp:2; one by default, all of many processes.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0 of several; auto asks the cluster's scheduler.")
    flags.DEFINE_integer("processes", None, "How many processes train together.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this one is, from 0.", lower_bound=0)


def changed(train: TrainConfig, **values: Any) -> TrainConfig:
    """`train` with the values that are not None."""
    return dataclasses.replace(train, **{name: value for name, value in values.items() if value is not None})


def configuration() -> Config:
    """The preset with the flags' changes to the stage that is asked for.

    Raises:
      UserError: an unknown name, or flags that do not go together.
    """
    for name, choices in CHOICES.items():
        if (given := getattr(FLAGS, name)) not in (None, *choices):
            raise UserError(f"unknown {name} {given!r}: choose {', '.join(choices[:-1])} or {choices[-1]}")
    config = preset(FLAGS)
    if FLAGS.picture_shift is not None:
        config = dataclasses.replace(config, picture=dataclasses.replace(config.picture, shift=FLAGS.picture_shift))
    if config.lora.rank and FLAGS.init is None:
        raise UserError("LoRA adapts weights that are there: give --init, or --lora_rank=0 to train all weights")
    if config.text.kind == "phi" and FLAGS.init is None:
        raise UserError(
            f"preset {config.name!r} begins with converted NOVA: give --init a folder that convert/nova_to_flax.py made"
        )
    if FLAGS.init is not None and FLAGS.stage == "vae":
        raise UserError("--init is of a policy, and --stage=vae begins with a frame VAE: give that as --vae")
    if FLAGS.keep_scale and FLAGS.init is None:
        raise UserError("--keep_scale keeps the scale of what --init names: give --init, or leave it out")
    for name in ("remat", "optimizer"):
        if FLAGS.stage == "vae" and getattr(FLAGS, name) is not None:
            raise UserError(f"--{name} is of the policy's transformers: leave it out with --stage=vae")
    asked = {
        "steps": FLAGS.steps,
        "batch": FLAGS.batch,
        "optimizer": FLAGS.optimizer,
        "learning_rate": FLAGS.learning_rate,
        "dtype": FLAGS.dtype,
        "remat": FLAGS.remat,
        "accumulate": FLAGS.accumulate,
    }
    if FLAGS.stage == "vae":
        return dataclasses.replace(config, vae_train=changed(config.vae_train, **asked))
    asked |= {name: getattr(FLAGS, name) for name in (*SHARES, "packages", "action_noise")}
    train = changed(config.train, **asked)
    if train.packages < config.model.context:
        raise UserError(
            f"a model that looks back on {config.model.context} packages learns nothing of them from sequences of "
            f"{train.packages}: give --packages={config.model.context} or more, or --context={train.packages}"
        )
    return dataclasses.replace(config, train=train, vae_train=changed(config.vae_train, steps=FLAGS.vae_steps))


def check_processes() -> None:
    """Makes sure that the flags say where processes meet, how many they are and which one this is.

    Raises:
      UserError: they do not.
    """
    where, counted = FLAGS.coordinator, [FLAGS.processes, FLAGS.process]
    if where is None or where == "auto":
        if counted != [None, None]:
            raise UserError("--processes and --process go with --coordinator=host:port, where process 0 can be reached")
        return
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={where} is no address: write host:port of process 0, or auto")
    if None in counted:
        raise UserError("--coordinator=host:port goes with --processes, how many there are, and --process, this one's")
    if FLAGS.process >= FLAGS.processes:
        raise UserError(f"there is no --process={FLAGS.process} of {FLAGS.processes}: they count from 0")


def demonstrations() -> tuple[tuple[str, ...], list[str]]:
    """The tasks that are asked for, and each one's folder.

    Raises:
      UserError: there is none, no such, one twice without a folder of its own, or another number of folders.
    """
    if not FLAGS.task:
        raise UserError("say which task to learn: --task=pushcube, pickcube or stackcube")
    tasks, folders = tuple(FLAGS.task), FLAGS.data or [f"data/{task}" for task in FLAGS.task]
    for task in tasks:
        get_task(task)
    if len(set(folders)) < len(folders):
        raise UserError(
            f"the same data twice, {','.join(folders)}: name each task once, or give a second folder of it in --data"
        )
    if len(folders) != len(tasks):
        raise UserError(
            f"--data names {len(folders)} folders for {len(tasks)} tasks: give one folder a task, in their order"
        )
    return tasks, folders


def videos() -> tuple[tuple[str, ...], list[str]]:
    """What the videos show, and their folders.

    Raises:
      UserError: there is none, or no such.
    """
    from par_jax.data.episodes import read_meta

    if not FLAGS.data:
        raise UserError("say which videos to learn from: --data=data/motion,data/pushcube")
    return tuple(read_meta(Path(folder))["task"] for folder in FLAGS.data), FLAGS.data


def start(of_videos: bool = False) -> "Run":
    """Checks the flags, joins the other processes, chooses the devices; what the command shall do.

    Args:
      of_videos: a model of videos is asked for, not a policy.

    Raises:
      UserError: a mistake in the flags, or data, devices or processes that are not there.
    """
    logging.set_verbosity(logging.WARNING)  # JAX and orbax narrate
    tasks, folders = videos() if of_videos else demonstrations()
    config = configuration()
    if of_videos:
        config = variants.changed(config, variants.VIDEO)
    check_processes()

    import jax  # jax is slow to import: mistakes in the flags are told before

    from experiments import devices
    from par_jax import processes, runs, sharding

    def meet() -> None:
        if FLAGS.coordinator is not None:
            processes.join(FLAGS.coordinator, FLAGS.processes, FLAGS.process)

    devices.choose(FLAGS.device, meet)
    signal.signal(signal.SIGTERM, _terminated)  # jax has put its own handler in, where processes meet
    mesh = FLAGS.mesh or (f"data:{jax.device_count()}" if jax.process_count() > 1 else None)
    wanted = runs.Run(
        tasks=tasks,
        config=config,
        data=tuple(map(Path, folders)),
        workdir=Path(FLAGS.workdir or f"runs/{'video' if of_videos else '-'.join(tasks)}"),
        seed=FLAGS.seed,
        init=Path(FLAGS.init) if FLAGS.init else None,
        keep_scale=FLAGS.keep_scale,
        mesh=None if mesh is None else sharding.make_mesh(mesh),
        log_every=FLAGS.log_every,
        checkpoint_every=FLAGS.checkpoint_every,
        eval_every=FLAGS.eval_every,
    )
    wanted.rows(config.train if FLAGS.stage == "policy" else config.vae_train)
    wanted.episodes()
    devices.keep_compiled(wanted.workdir)
    return wanted


def vae_of(wanted: "Run") -> "Run":
    """The run of the frame VAE in a policy's folder."""
    return dataclasses.replace(wanted, workdir=wanted.workdir / "vae")


def adopted(wanted: "Run") -> "Run":
    """The run with what --init or --vae bring in its folder.

    Raises:
      UserError: they are not there, damaged, or do not fit.
    """
    from par_jax import beginning, runs

    vae = vae_of(wanted).workdir
    if wanted.init is not None:
        return beginning.adopt(wanted, Path(FLAGS.vae) if FLAGS.vae else None)
    if FLAGS.vae is not None and Path(FLAGS.vae).resolve() != vae.resolve():
        runs.adopt_vae(Path(FLAGS.vae), vae)
    return wanted


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
    """Tells in a sentence that a folder cannot be written to.

    Raises:
      UserError: so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"cannot write to {workdir}: {error.strerror}; mend that and type the same command again, "
            "or give another --workdir"
        ) from error


def _terminated(*_: object) -> None:
    sys.stderr.write("stopped; the same command goes on from here\n")
    os._exit(128 + signal.SIGTERM)
