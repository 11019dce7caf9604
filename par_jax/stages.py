"""The two stages of a training run, end to end: the frame VAE, then the policy on its latents.

A policy run's folder holds `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `vae/`, which
is laid out alike. The VAE's folder also keeps the latents made with it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from par_jax import config as config_lib
from par_jax import initialise, pretrained
from par_jax.checkpoint import Checkpoints, claim, load_params, read_meta, write_json
from par_jax.config import Config, TrainConfig, VAEConfig
from par_jax.data.episodes import Episodes, statistics
from par_jax.data.latents import digest, encode_all, shifts
from par_jax.data.pictures import picture_batches, sample_pictures, split_episodes, to_unit
from par_jax.data.windows import Windows, validation_batches, window_batches
from par_jax.errors import UserError
from par_jax.language import FILE, embed_prompts, instruction_tokens, keep
from par_jax.losses import policy_errors, policy_loss
from par_jax.losses_vae import vae_loss
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional, Params
from par_jax.normalise import scale_actions
from par_jax.tasks import get_task
from par_jax.train import Result, TrainState, fit, init_state, make_train_step
from par_jax.versions import versions

# What training the VAE adds to its config.json.
MEASURED = ("complete", "config.vae.scaling_factor", "config.vae.shift_factor")
PACKAGES = ("par_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
VALIDATION_BATCHES = 2
MEASURED_PICTURES = 512


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command asks for.

    Attributes:
      task: name in `par_jax.tasks.TASKS`.
      config: the preset with the command's changes.
      data: demonstration folder.
      workdir: the policy run's folder; the VAE's is `workdir/vae`.
      seed: of the parameters, of the data's order and of every draw.
      init: a converted NOVA checkpoint to begin with, or None.
      log_every, checkpoint_every, eval_every: steps.
    """

    task: str
    config: Config
    data: Path
    workdir: Path
    seed: int = 0
    init: Path | None = None
    log_every: int = 20
    checkpoint_every: int = 250
    eval_every: int = 500

    def episodes(self) -> Episodes:
        """The demonstrations.

        Raises:
          UserError: they are missing, damaged, or of another task, picture size or cameras.
        """
        get_task(self.task)
        picture = self.config.picture
        return Episodes(self.data, task=self.task, picture_size=picture.size, cameras=picture.cameras)

    def meta(self, stage: str, episodes: Episodes) -> dict:
        """What `config.json` holds: all that the run's numbers depend on."""
        return {
            "format": 1,
            "stage": stage,
            "task": self.task,
            "instruction": get_task(self.task).instruction,
            "seed": self.seed,
            "init": None if self.init is None else str(self.init),
            "config": config_lib.to_dict(self.config),
            "statistics": statistics(episodes),
            "dataset": episodes.meta,
            "versions": versions(PACKAGES),
        }

    def fit(self, *args: Any, **kwargs: Any) -> Result:
        """`par_jax.train.fit` with this run's intervals."""
        return fit(
            *args,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            eval_every=self.eval_every,
            **kwargs,
        )


def first_state(module: Functional, train: TrainConfig, seed: int) -> Callable[[], TrainState]:
    """The function that draws a run's first state. Nothing is computed here: a resumed run never draws it."""
    return jax.jit(lambda: init_state(module.init(jax.random.key(seed)), train, seed))


def train_vae(run: Run) -> Result:
    """Trains the frame VAE into `run.workdir` and measures its latents' mean and deviation at the end.

    Raises:
      UserError: the data or the folder do not fit, the loss is not finite, or the disk is full.
    """
    config, train = run.config, run.config.vae_train
    episodes = run.episodes()
    ids, held_out = split_episodes(len(episodes))
    meta = claim(run.workdir, run.meta("vae", episodes), ignore=MEASURED)
    vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
    first = first_state(vae, train, run.seed)

    def loss(params: Params, pictures: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
        pictures = to_unit(pictures).astype(jax.tree.leaves(params)[0].dtype)
        return vae_loss(vae.bind(params), pictures, key)

    seen = sample_pictures(episodes, held_out if len(held_out) else ids, config.picture, train.batch)
    evaluate_once = jax.jit(lambda params: loss(params, seen, jax.random.key(0)))

    def evaluate(state: TrainState) -> dict[str, float]:
        value, parts = evaluate_once(state.ema)
        return {name: float(part) for name, part in {"loss": value, **parts}.items()}

    _announce("frame VAE", run.task, len(ids), len(held_out), vae, train.steps)
    result = run.fit(
        first,
        make_train_step(loss, train),
        picture_batches(episodes, ids, config.picture, train.batch, run.seed),
        run.workdir,
        steps=train.steps,
        evaluate=evaluate,
    )
    if result.signal is None and not meta.get("complete"):
        pictures = sample_pictures(episodes, ids, config.picture, MEASURED_PICTURES)
        encode = make_encode(config.vae, result.state.ema)
        latents = np.concatenate([encode(part) for part in np.split(pictures, 16)])
        meta["config"]["vae"]["shift_factor"] = float(latents.mean())
        meta["config"]["vae"]["scaling_factor"] = float(1.0 / latents.std())
        write_json(run.workdir / "config.json", {**meta, "complete": True})
    return result


def make_encode(config: VAEConfig, params: Params) -> Callable[[np.ndarray], jax.Array]:
    """A jitted encoder: uint8 pictures [N, h, w, 3] -> scaled latents [N, h', w', C] float32."""
    vae = Functional(lambda rngs: VAE(config, rngs=rngs))
    encode = jax.jit(lambda params, pictures: vae.bind(params).encode_frames(to_unit(pictures)))
    return lambda pictures: encode(params, pictures)


def is_trained(vae: Path) -> bool:
    """Whether a folder holds a VAE whose training is complete."""
    return (vae / "config.json").exists() and bool(read_meta(vae).get("complete"))


def adopt_vae(source: Path, target: Path) -> None:
    """Copies a trained VAE's parameters, so that a policy's folder holds all that a rollout needs.

    Raises:
      UserError: there is no trained VAE, or the policy's folder holds another one.
    """
    if read_meta(source).get("stage") != "vae" or not is_trained(source):
        raise UserError(f"{source} holds no trained VAE: train one there with --stage=vae, or leave --vae out")
    _, meta, params = load_params(source)
    if (target / "config.json").exists():
        if digest(load_params(target)[2]) != digest(params):
            raise UserError(f"{target} holds another VAE than {source}: leave --vae out, or use a new --workdir")
        return
    _write_vae(target, meta["step"], params, {name: value for name, value in meta.items() if name != "step"})


def _write_vae(folder: Path, step: int, params: Params, meta: dict) -> None:
    """A trained VAE's folder: `config.json` comes last, and makes it whole."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, {"ema": params}, {})
    checkpoints.wait()
    checkpoints.close()
    write_json(folder / "config.json", meta)


def adopt_nova(run: Run) -> Run:
    """Prepares a run that begins with converted NOVA: its frozen frame VAE and the instruction's embeddings.

    Returns:
      The run with NOVA's shapes.

    Raises:
      UserError: the checkpoint is missing or damaged, lacks a part, or does not fit the preset.
    """
    source = run.init
    assert source is not None
    architecture = pretrained.read_config(source)
    config = dataclasses.replace(run.config, vae=architecture.vae)
    run = dataclasses.replace(run, config=initialise.fit(config, architecture.nova))
    folder = run.workdir / "vae"
    if not is_trained(folder):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), pretrained.load(source, "vae"))
        _write_vae(folder, 0, params, {**run.meta("vae", run.episodes()), "complete": True})
    if not (run.workdir / FILE).exists():
        instruction = get_task(run.task).instruction
        position = pretrained.load(source, "transformer")["text_embed"]["position"]
        embeddings = embed_prompts(source, jax.numpy.asarray(position), [instruction])
        keep(run.workdir, instruction, np.asarray(embeddings[0], np.float32))
    return run


def train_policy(run: Run) -> Result:
    """Trains the policy into `run.workdir`, on latents of the trained VAE in `run.workdir / "vae"`.

    Raises:
      UserError: the data, the VAE or the folder do not fit, the loss is not finite, or the disk is full.
    """
    vae_config, _, vae = load_params(run.workdir / "vae")
    _same_vae(vae_config.vae, run.config.vae, run.workdir / "vae")
    config = dataclasses.replace(run.config, vae=vae_config.vae)
    episodes, train = run.episodes(), config.train
    ids, held_out = split_episodes(len(episodes))
    numbers = statistics(episodes)
    model = dataclasses.replace(config.model, action_dim=len(numbers["low"]))  # the control mode's
    config = dataclasses.replace(config, model=model)
    run = dataclasses.replace(run, config=config)
    claim(run.workdir, {**run.meta("policy", episodes), "vae": digest(vae)}, ignore=("config.vae_train",))
    windows = make_windows(run, episodes, ids, vae, numbers)
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    first = first_state(par, train, run.seed)
    if run.init is not None:
        first = _beginning_with(run.init, first)

    def loss(params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        return policy_loss(par.bind(params), batch, key)

    seen = validation_batches(windows, held_out if len(held_out) else ids, train.batch, VALIDATION_BATCHES)
    errors = jax.jit(lambda params, batch, key: policy_errors(par.bind(params), batch, key))
    losses = jax.jit(loss)

    def evaluate(state: TrainState) -> dict[str, float]:
        rows = []
        for number, batch in enumerate(seen):
            key = jax.random.key(number)
            value, parts = losses(state.ema, batch, key)
            rows.append({"loss": value, **parts, **errors(state.ema, batch, key)})
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    _announce("policy", run.task, len(ids), len(held_out), par, train.steps)
    return run.fit(
        first,
        make_train_step(loss, train),
        window_batches(windows, ids, train.batch, run.seed, train.start_share),
        run.workdir,
        steps=train.steps,
        evaluate=evaluate,
    )


def make_windows(run: Run, episodes: Episodes, ids: np.ndarray, vae: Params, numbers: dict) -> Windows:
    """The demonstrations as latents, kept in the VAE's folder, and scaled actions."""
    config = run.config
    latents = encode_all(
        run.workdir / "vae" / "latents",
        episodes,
        make_encode(config.vae, vae),
        digest(vae),
        config.picture,
        shifts(episodes, ids, config.picture, run.seed),
        (*config.latent_size, config.vae.latent_channels),
    )
    low, high = numbers["low"], numbers["high"]
    rest = None
    if "delta" in episodes.meta.get("control_mode", ""):
        last = episodes.numbers(0)["action"][-1]
        rest = scale_actions(np.concatenate([np.zeros_like(last[:-1]), last[-1:]]), low, high)
    return Windows(
        latents=latents,
        actions=[scale_actions(episodes.numbers(i)["action"], low, high) for i in range(len(episodes))],
        text=instruction_tokens(config.text, get_task(run.task).instruction, run.workdir),
        packages=config.train.packages,
        chunk=config.model.chunk,
        lookahead=config.model.lookahead,
        rest=rest,
    )


def _beginning_with(checkpoint: Path, first: Callable[[], TrainState]) -> Callable[[], TrainState]:
    """`first` with NOVA's parameters in their places."""

    def begin() -> TrainState:
        state = first()
        params, report = initialise.from_nova(state.params, pretrained.load(checkpoint, "transformer"))
        print(initialise.summary(params, report), flush=True)
        params = jax.tree.map(jax.numpy.asarray, params)
        return dataclasses.replace(state, params=params, ema=jax.tree.map(lambda leaf: leaf.copy(), params))

    return begin


def _same_vae(found: VAEConfig, wanted: VAEConfig, folder: Path) -> None:
    measured: dict[str, Any] = {"scaling_factor": 1.0, "shift_factor": 0.0}
    differing = config_lib.differences(
        config_lib.to_dict(dataclasses.replace(found, **measured)),
        config_lib.to_dict(dataclasses.replace(wanted, **measured)),
    )
    if differing:
        raise UserError(f"the VAE in {folder} is not the preset's: {'; '.join(differing)}; train one with --stage=vae")


def _announce(what: str, task: str, train: int, held_out: int, module: Functional, steps: int) -> None:
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0)))) / 1e6
    print(
        f"{what} for {task}: {size:.2f}M parameters, {steps} steps on {jax.devices()[0].platform}, "
        f"{train} demonstrations to train on, {held_out} held out",
        flush=True,
    )
