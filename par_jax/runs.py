"""A training run: what a command asks for, and the folder that holds all that a rollout needs.

A policy run's folder holds `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`; `vae/`, which is laid out
alike and also keeps the latents made with it; `instruction.npz` where a language model reads the instruction; and
`base/`, the frozen parameters, where adapters are trained.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from par_jax import config as config_lib
from par_jax import lora, processes
from par_jax.checkpoint import Checkpoints, load_params
from par_jax.config import Config, TrainConfig, VAEConfig
from par_jax.data.episodes import MOTION, Episodes, check_stride, is_delta, statistics
from par_jax.data.latents import digest, share
from par_jax.data.mixture import Mixture
from par_jax.errors import UserError
from par_jax.language import FILE
from par_jax.loop import Result, fit
from par_jax.nn.functional import Functional, Params
from par_jax.sharding import check_rows, shardings
from par_jax.tasks import get_scene
from par_jax.train import TrainState, init_state
from par_jax.versions import versions
from par_jax.workdir import RELEASED, read_meta, write_json

PACKAGES = ("par_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command asks for.

    Attributes:
      tasks: names in `par_jax.tasks.TASKS`, which one policy learns, each by its instruction; a model of videos also
        learns from `SCENES`.
      config: the preset with the command's changes.
      data: demonstration folders, one a task.
      workdir: the policy run's folder; the VAE's is `workdir/vae`.
      seed: of the parameters, of the data's order and of every draw.
      init: what to begin with, or None: converted NOVA, a run or a released policy (for a VAE: a trained one's folder).
      keep_scale: whether actions are scaled as they are in `init`, and not by the data's range.
      mesh: the devices to train on; None for one. The run's numbers depend on it by rounding alone.
      log_every, checkpoint_every, eval_every: steps.
    """

    tasks: tuple[str, ...]
    config: Config
    data: tuple[Path, ...]
    workdir: Path
    seed: int = 0
    init: Path | None = None
    keep_scale: bool = False
    mesh: Mesh | None = None
    log_every: int = 20
    checkpoint_every: int = 250
    eval_every: int = 500

    @property
    def instructions(self) -> list[str]:
        """What the policy is told, one a task."""
        return [get_scene(task).instruction for task in self.tasks]

    @property
    def learnt(self) -> list[str]:
        """The tasks, each once: several folders may be of one."""
        return list(dict.fromkeys(self.tasks))

    def episodes(self) -> Mixture:
        """The demonstrations, of all tasks.

        Raises:
          UserError: they are missing, damaged, of another task, picture size or cameras, or filmed at steps that do not
            fit the model's chunks.
        """
        picture, opened = self.config.picture, []
        for task, folder in zip(self.tasks, self.data, strict=True):
            made = Episodes(folder, task=task, picture_size=picture.size, cameras=picture.cameras)
            if self.config.model.predict_actions and made.meta.get("source") == MOTION:
                raise UserError(
                    f"{folder} demonstrates nothing: it holds videos for experiments.pretrain; name another --data"
                )
            check_stride(made, self.config.model.chunk)
            opened.append(made)
        return Mixture(opened)

    def relative(self, episodes: Mixture) -> bool:
        """Whether the model tells actions as differences: where the control mode's are targets and not moves."""
        return self.config.model.relative_actions and not is_delta(episodes.meta)

    def statistics(self, episodes: Mixture) -> dict:
        """What scales the actions, as the model tells them."""
        model = self.config.model
        made = statistics(episodes, model.chunk if self.relative(episodes) else None, model.one_scale)
        if self.keep_scale and self.init is not None:
            begun = read_meta(self.init)["statistics"]
            made |= {name: begun[name] for name in ("low", "high")}
        return made

    def rows(self, train: TrainConfig) -> slice:
        """This process's rows of a batch.

        Raises:
          UserError: the batch does not divide into parts over the mesh.
        """
        check_rows(train.batch, self.mesh, train.accumulate)
        return processes.rows(train.batch)

    def meta(self, stage: str, episodes: Mixture) -> dict:
        """What `config.json` holds: all that the run's numbers depend on."""
        return {
            "format": 1,
            "stage": stage,
            "tasks": self.learnt,
            "instructions": [get_scene(task).instruction for task in self.learnt],
            "seed": self.seed,
            "init": None if self.init is None else str(self.init),
            "config": config_lib.to_dict(self.config),
            "statistics": self.statistics(episodes),
            "dataset": episodes.meta,
            "versions": versions(PACKAGES),
        }

    def fit(self, *args: Any, **kwargs: Any) -> Result:
        """`par_jax.loop.fit` with this run's mesh and intervals."""
        return fit(
            *args,
            mesh=self.mesh,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            eval_every=self.eval_every,
            **kwargs,
        )


def first_state(
    module: Functional, train: TrainConfig, seed: int, mesh: Mesh | None = None
) -> Callable[[], TrainState]:
    """The function that draws a run's first state, in its places on the mesh.

    Nothing is computed here: a resumed run never draws it.
    """

    def draw() -> TrainState:
        return init_state(module.init(jax.random.key(seed)), train, seed)

    return jax.jit(draw, out_shardings=None if mesh is None else shardings(jax.eval_shape(draw), mesh))


def is_trained(vae: Path) -> bool:
    """Whether a folder holds a VAE whose training is complete."""
    return (vae / "config.json").exists() and bool(read_meta(vae).get("complete"))


def adopt_vae(source: Path, target: Path) -> None:
    """Copies a trained VAE's parameters, so that a policy's folder holds all that a rollout needs; links its latents.

    Raises:
      UserError: there is no trained VAE, or the policy's folder holds another one.
    """
    processes.in_turn(lambda: _adopt_vae(source, target))


def check_trained(source: Path) -> None:
    """Makes sure that a folder holds a VAE whose training is complete.

    Raises:
      UserError: it does not.
    """
    meta = read_meta(source)
    if RELEASED in meta:
        raise UserError(f"{source} holds a released policy: train a decoder for it first, --stage=vae --vae={source}")
    if meta.get("stage") != "vae" or not is_trained(source):
        raise UserError(f"{source} holds no trained VAE: train one there with --stage=vae, or leave --vae out")


def check_vae(found: VAEConfig, wanted: VAEConfig, folder: Path) -> None:
    """Makes sure that a VAE is the preset's, whatever its latents' scale is.

    Raises:
      UserError: it is not; names the fields.
    """
    measured: dict[str, Any] = {"scaling_factor": 1.0, "shift_factor": 0.0}
    differing = config_lib.differences(
        config_lib.to_dict(dataclasses.replace(found, **measured)),
        config_lib.to_dict(dataclasses.replace(wanted, **measured)),
    )
    if differing:
        raise UserError(f"the VAE in {folder} is not the preset's: {'; '.join(differing)}; train one with --stage=vae")


def _adopt_vae(source: Path, target: Path) -> None:
    check_trained(source)
    _, meta, params = load_params(source)
    if (target / "config.json").exists():
        if digest(load_params(target)[2]) != digest(params):
            raise UserError(f"{target} holds another VAE than {source}: leave --vae out, or use a new --workdir")
    else:
        write_frozen(target, meta["step"], params, {name: value for name, value in meta.items() if name != "step"})
    share(source, target)


def write_frozen(folder: Path, step: int, params: Params, meta: dict) -> None:
    """A folder of parameters that are not trained further: `config.json` comes last, and makes it whole."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, {"ema": params}, {})
    checkpoints.wait()
    checkpoints.close()
    write_json(folder / "config.json", meta)


def merge_adapters(source: Path, target: Path) -> None:
    """Writes a run with adapters as one of plain weights, which acts alike and may be trained further.

    Raises:
      UserError: it has no adapters, or the target is there.
    """
    config, meta, params = load_params(source)
    if meta["stage"] != "policy" or not config.lora.rank:
        raise UserError(f"{source} has no adapters to merge: it was trained without --lora_rank")
    if (target / "config.json").exists():
        raise UserError(f"{target} holds a run: name another --out")
    adopt_vae(source / "vae", target / "vae")
    if (source / FILE).exists():
        shutil.copy(source / FILE, target / FILE)
    plain = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=0))
    meta = {**meta, "config": config_lib.to_dict(plain)}
    merged = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), lora.merge(params, config.lora))
    write_frozen(target, meta.pop("step"), merged, meta)
