"""What training begins with: fresh parameters, NOVA, an earlier run or a released policy; adapters on either."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from par_jax import initialise, lora, pretrained
from par_jax.checkpoint import load_params
from par_jax.config import Config
from par_jax.data.mixture import Mixture
from par_jax.errors import UserError
from par_jax.language import FILE, embed_prompts, keep, read
from par_jax.model.vae import DECODER
from par_jax.nn.functional import Functional, Params
from par_jax.processes import in_turn, say
from par_jax.release import WEIGHTS, load_policy
from par_jax.runs import Run, adopt_vae, check_trained, check_vae, first_state, is_trained, write_frozen
from par_jax.train import TrainState, init_state
from par_jax.workdir import RELEASED, read_meta

BASE = "base"


def adopt(run: Run, vae: Path | None = None) -> Run:
    """Prepares a run that begins with `run.init`: takes over its frozen frame VAE and the instruction's embeddings.

    A released policy without what predicts frames has half a VAE: the other half is still to be trained (`begin_vae`).

    Args:
      run: the run.
      vae: folder of another VAE to take, as of the same one trained on; not for NOVA, which sees through its own.

    Returns:
      The run with the shapes of what it begins with.

    Raises:
      UserError: there is no checkpoint, it is damaged, lacks a part, or does not fit the preset.
    """
    source = run.init
    assert source is not None
    if not _is_nova(source):
        return in_turn(lambda: _adopt_run(run, source, vae))
    if run.keep_scale:
        raise UserError("converted NOVA knows no actions, and no scale of them to keep: leave out --keep_scale")
    if vae is not None:
        raise UserError("converted NOVA brings its own frame VAE: leave out --vae")
    return in_turn(lambda: _adopt_nova(run, source))


def begin(run: Run, par: Functional, episodes: Mixture) -> tuple[Callable[[], TrainState], Params | None]:
    """The first state, drawn when it is called, and the frozen parameters (None where all are trained).

    Args:
      run: as `adopt` returned it, if it begins with anything.
      par: the model.
      episodes: for the record.

    Raises:
      UserError: what it begins with does not fit the model, or adapters have nothing to adapt.
    """
    train, adapted = run.config.train, run.config.lora.rank > 0
    begins = run.init is not None and run.config.pretrained
    if adapted and not begins:
        raise UserError("LoRA adapts weights that are there: give --init, or --lora_rank=0 to train them all")
    if not begins:
        return first_state(par, train, run.seed, run.mesh), None

    def whole() -> Params:
        params, report = initialise.take(jax.jit(par.init)(jax.random.key(run.seed)), _given(run.init))
        say(initialise.summary(params, report))
        return params

    def first() -> TrainState:
        return jax.jit(lambda params: init_state(params, train, run.seed))(lora.split(whole())[0])

    if not adapted:
        return first, None
    folder = run.workdir / BASE

    def keep_frozen() -> None:
        if not (folder / "config.json").exists():
            frozen = jax.tree.map(lambda leaf: np.asarray(leaf, train.dtype), lora.split(whole())[1])
            write_frozen(folder, 0, frozen, run.meta(BASE, episodes))

    in_turn(keep_frozen)
    return first, load_params(folder)[2]


def begin_vae(run: Run, vae: Functional) -> tuple[Callable[[], TrainState], dict | None]:
    """The first state of a frame VAE's training, drawn when it is called: fresh, or with what `run.init` holds.

    Args:
      run: of the VAE; its `init` is a trained VAE's folder, a released policy's, or None.
      vae: the model.

    Returns:
      The function that draws the state; for a released policy, which knows no other latents, their `shift_factor` and
      `scaling_factor`: the encoder has to stay as it is. None where all is trained.

    Raises:
      UserError: `run.init` holds no such, or another VAE than the preset's.
    """
    train = run.config.vae_train
    if run.init is None:
        return first_state(vae, train, run.seed, run.mesh), None
    released = RELEASED in read_meta(run.init)
    if released:
        config, _, policy = load_policy(run.init)
        params = policy["vae"]
    else:
        check_trained(run.init)
        config, _, params = load_params(run.init)
    check_vae(config.vae, run.config.vae, run.init)

    def first() -> TrainState:
        begun = params
        if released:
            begun = initialise.take(jax.jit(vae.init)(jax.random.key(run.seed)), params)[0]
        return jax.jit(lambda begun: init_state(begun, train, run.seed))(begun)

    scale = {"shift_factor": config.vae.shift_factor, "scaling_factor": config.vae.scaling_factor}
    return first, scale if released else None


def state_shapes(run: Run, par: Functional) -> TrainState:
    """The state's arrays as shapes: what a checkpoint of the run must hold. Nothing is drawn or read."""
    return jax.eval_shape(lambda: init_state(lora.split(par.init(jax.random.key(0)))[0], run.config.train, run.seed))


def _is_nova(folder: Path) -> bool:
    ours = any((folder / name).exists() for name in ("checkpoints", WEIGHTS))
    return (folder / pretrained.MANIFEST).exists() or not ours


def _given(source: Path | None) -> Params:
    """The parameters to begin with."""
    assert source is not None
    return pretrained.load(source, "transformer") if _is_nova(source) else _load(source)[2]["par"]


def _load(source: Path) -> tuple[Config, dict, Params]:
    """Configuration, `config.json` and `{"par": ...}` of a run; a released policy has its `"vae"` there, too."""
    if RELEASED in read_meta(source):
        return load_policy(source)
    config, meta, params = load_params(source)
    return config, meta, {"par": params}


def _adopt_nova(run: Run, source: Path) -> Run:
    architecture = pretrained.read_config(source)
    config = dataclasses.replace(run.config, vae=architecture.vae)
    run = dataclasses.replace(run, config=initialise.fit(config, architecture.nova))
    folder = run.workdir / "vae"
    if not is_trained(folder):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), pretrained.load(source, "vae"))
        write_frozen(folder, 0, params, {**run.meta("vae", run.episodes()), "complete": True})
    if not (run.workdir / FILE).exists():
        position = pretrained.load(source, "transformer")["text_embed"]["position"]
        embeddings = embed_prompts(source, jax.numpy.asarray(position), run.instructions)
        keep(run.workdir, run.instructions, np.asarray(embeddings, np.float32))
    return run


def _adopt_run(run: Run, source: Path, vae: Path | None) -> Run:
    if read_meta(source)["stage"] == "vae":
        raise UserError(f"{source} holds a frame VAE, not a model to begin with: give it as --vae")
    config, meta, params = _load(source)
    if config.name != run.config.name:
        raise UserError(
            f"{source} was trained with preset {config.name!r}, not {run.config.name!r}: give --preset={config.name}"
        )
    if run.keep_scale:
        _check_scale(run, config, meta, source)
    if vae is not None or "vae" not in params:
        adopt_vae(vae or source / "vae", run.workdir / "vae")
    elif set(DECODER) <= params["vae"].keys() and not is_trained(run.workdir / "vae"):
        whole = run.meta("vae", run.episodes()) | {"config": meta["config"], "complete": True}
        write_frozen(run.workdir / "vae", 0, params["vae"], whole)
    if config.text.kind == "phi" and not (run.workdir / FILE).exists():
        keep(run.workdir, run.instructions, np.stack([read(source, words) for words in run.instructions]))
    return dataclasses.replace(run, config=dataclasses.replace(run.config, vae=config.vae, text=config.text))


def _check_scale(run: Run, config: Config, meta: dict, source: Path) -> None:
    episodes = run.episodes()
    if not config.model.predict_actions:
        raise UserError(f"{source} is of videos, and has no scale of actions to keep: leave out --keep_scale")
    theirs, ours = meta["dataset"]["control_mode"], episodes.meta["control_mode"]
    if theirs != ours or config.model.relative_actions != run.relative(episodes):
        raise UserError(
            f"{source} tells actions as {_told(theirs, config.model.relative_actions)}, this run as "
            f"{_told(ours, run.relative(episodes))}: leave out --keep_scale"
        )


def _told(mode: str, relative: bool) -> str:
    return f"{mode}, relative" if relative else mode
