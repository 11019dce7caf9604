"""The two stages of a training run, end to end: the frame VAE, then the policy on its latents."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from par_jax import lora, processes, sharding
from par_jax.beginning import begin, begin_vae, state_shapes
from par_jax.best import keep_best
from par_jax.checkpoint import load_params
from par_jax.config import VAEConfig
from par_jax.data.episodes import is_delta
from par_jax.data.latents import digest, encode_parts, latents_dir, shifts
from par_jax.data.mixture import Mixture
from par_jax.data.pictures import picture_batches, sample_pictures, split_episodes, to_unit
from par_jax.data.windows import Windows, validation_batches, window_batches
from par_jax.language import instruction_tokens
from par_jax.loop import Result
from par_jax.losses import policy_errors, policy_loss
from par_jax.losses_vae import vae_loss
from par_jax.model.par import PAR
from par_jax.model.vae import DECODER, VAE
from par_jax.nn.functional import Functional, Params
from par_jax.normalise import scale_actions
from par_jax.runs import Run, check_vae, is_trained
from par_jax.train import TrainState, cast, join, make_train_step
from par_jax.workdir import claim, write_json

# What training the VAE adds to its config.json.
MEASURED = ("complete", "config.vae.scaling_factor", "config.vae.shift_factor")
# What another run of the same command may change: neither bears on the policy's numbers.
CHANGEABLE = ("config.vae_train", "config.train.remat")
# The adapters of a finished run, apart.
ADAPTERS = "adapters.safetensors"
# What is trained, for people.
NAMES = {"policy": "policy", "video": "video model"}
VALIDATION_BATCHES = 4
MEASURED_PICTURES = 512


def train_vae(run: Run) -> Result:
    """Trains the frame VAE into `run.workdir` and measures its latents' mean and deviation at the end.

    It begins with the trained VAE in the folder `run.init`, if that is given. Where that is a released policy's, the
    decoder is trained alone: latents and their scale stay what the policy knows.

    Raises:
      UserError: the data or the folder do not fit, the loss is not finite, or the disk is full.
    """
    config, train = run.config, run.config.vae_train
    rows = run.rows(train)
    episodes = run.episodes()
    ids, held_out = split_episodes(len(episodes))
    meta = claim(run.workdir, run.meta("vae", episodes), ignore=MEASURED)
    vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
    first, scale = begin_vae(run, vae)
    if scale is not None:  # what has no gradient then stays
        train = dataclasses.replace(train, weight_decay=0.0)

    def loss(params: Params, pictures: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
        if scale is not None:
            params = {name: tree if name in DECODER else jax.lax.stop_gradient(tree) for name, tree in params.items()}
        pictures = to_unit(pictures).astype(jax.tree.leaves(params)[0].dtype)
        return vae_loss(vae.bind(params), pictures, key)

    seen = sample_pictures(episodes, held_out if len(held_out) else ids, config.picture, train.batch)[rows]
    evaluate_once = jax.jit(loss)

    def evaluate(state: TrainState) -> dict[str, float]:
        value, parts = evaluate_once(state.ema, sharding.spread(seen, run.mesh), jax.random.key(0))
        return {name: float(part) for name, part in {"loss": value, **parts}.items()}

    _announce("frame VAE", run, len(ids), len(held_out), vae, train.steps)
    result = run.fit(
        first,
        make_train_step(loss, train, run.mesh),
        picture_batches(episodes, ids, config.picture, train.batch, run.seed, rows),
        run.workdir,
        steps=train.steps,
        evaluate=evaluate,
    )
    if result.signal is None:
        params = jax.tree.map(processes.whole, result.state.ema)

        def measure() -> None:
            if is_trained(run.workdir):
                return
            pictures = sample_pictures(episodes, ids, config.picture, MEASURED_PICTURES)
            meta["config"]["vae"] |= scale or _latent_scale(config.vae, params, pictures)
            write_json(run.workdir / "config.json", {**meta, "complete": True})

        processes.in_turn(measure)
    return result


def make_encode(config: VAEConfig, params: Params) -> Callable[[np.ndarray], jax.Array]:
    """A jitted encoder: uint8 pictures [N, h, w, 3] -> scaled latents [N, h', w', C] float32."""
    vae = Functional(lambda rngs: VAE(config, rngs=rngs))
    encode = jax.jit(lambda params, pictures: vae.bind(params).encode_frames(to_unit(pictures)))
    return lambda pictures: encode(params, pictures)


def _latent_scale(config: VAEConfig, params: Params, pictures: np.ndarray) -> dict[str, float]:
    encode = make_encode(config, params)
    latents = np.concatenate([encode(part) for part in np.split(pictures, 16)])
    return {"shift_factor": float(latents.mean()), "scaling_factor": float(1.0 / latents.std())}


def train_policy(run: Run) -> Result:
    """Trains the policy into `run.workdir`, on latents of the trained VAE in `run.workdir / "vae"`.

    A model without actions is trained on videos instead, and its stage is called "video".

    Raises:
      UserError: the data, the VAE or the folder do not fit, the loss is not finite, or the disk is full.
    """
    run, episodes, vae = _fitted(run)
    config, train = run.config, run.config.train
    rows = run.rows(train)
    ids, held_out = split_episodes(len(episodes))
    par = Functional(lambda rngs: PAR(config, rngs=rngs))
    stage = "policy" if config.model.predict_actions else "video"
    claim(run.workdir, {**run.meta(stage, episodes), "vae": digest(vae)}, ignore=CHANGEABLE)
    first, frozen = begin(run, par, episodes)
    frozen = sharding.place(frozen, run.mesh)
    windows = make_windows(run, episodes, vae)

    def loss(params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:
        return policy_loss(par.bind(params), batch, key)

    seen = validation_batches(windows, held_out if len(held_out) else ids, train.batch, VALIDATION_BATCHES)
    seen = [sharding.spread(jax.tree.map(lambda leaf: leaf[rows], batch), run.mesh) for batch in seen]
    errors = jax.jit(lambda params, batch, key: policy_errors(par.bind(params), batch, key))
    losses = jax.jit(loss)

    def evaluate(state: TrainState) -> dict[str, float]:
        lines = []
        params = state.ema if frozen is None else join(cast(state.ema, train.dtype), frozen)
        for number, batch in enumerate(seen):
            key = jax.random.key(number)
            value, parts = losses(params, batch, key)
            judged = errors(params, batch, key) if config.model.predict_actions else {}
            lines.append({"loss": value, **parts, **judged})
        means = {name: float(np.mean([line[name] for line in lines])) for name in lines[0]}
        if config.model.predict_actions:
            keep_best(run.workdir, int(state.step), state.ema, means)
        return means

    _announce(NAMES[stage], run, len(ids), len(held_out), par, train.steps)
    result = run.fit(
        first,
        make_train_step(loss, train, run.mesh, frozen),
        window_batches(windows, ids, train.batch, run.seed, train.start_share, rows),
        run.workdir,
        steps=train.steps,
        evaluate=evaluate,
        shapes=state_shapes(run, par),
    )
    if result.signal is None and config.lora.rank and processes.leads():
        save_file(lora.adapters(result.state.ema), run.workdir / ADAPTERS)
    return result


def encode(run: Run) -> Windows:
    """Encodes ahead of training what a policy is trained on: `train_policy` then finds it in `run.workdir`.

    Raises:
      UserError: the data or the VAE do not fit, the instruction's embeddings are missing, or the disk is full.
    """
    run, episodes, vae = _fitted(run)
    return make_windows(run, episodes, vae)


def _fitted(run: Run) -> tuple[Run, Mixture, Params]:
    """A policy's run with what its data and its VAE decide, and both of them."""
    vae_config, _, vae = load_params(run.workdir / "vae")
    check_vae(vae_config.vae, run.config.vae, run.workdir / "vae")
    episodes = run.episodes()
    width = episodes.numbers(0)["action"].shape[1]  # the control mode's
    model = dataclasses.replace(run.config.model, action_dim=width, relative_actions=run.relative(episodes))
    config = dataclasses.replace(run.config, vae=vae_config.vae, model=model)
    return dataclasses.replace(run, config=config), episodes, vae


def make_windows(run: Run, episodes: Mixture, vae: Params) -> Windows:
    """The demonstrations as latents, kept in the VAE's folder, and scaled actions."""
    config = run.config
    ids, _ = split_episodes(len(episodes))
    latents = processes.in_turn(
        lambda: encode_parts(
            latents_dir(run.workdir / "vae"),
            episodes,
            make_encode(config.vae, vae),
            digest(vae),
            config.picture,
            shifts(episodes, ids, config.picture, run.seed),
            (*config.latent_size, config.vae.latent_channels),
        )
    )
    numbers = run.statistics(episodes)
    low, high = numbers["low"], numbers["high"]
    rest = None
    if is_delta(episodes.meta):
        last = episodes.numbers(0)["action"][-1]
        rest = scale_actions(np.concatenate([np.zeros_like(last[:-1]), last[-1:]]), low, high)
    records = [episodes.numbers(i) for i in range(len(episodes))]
    return Windows(
        latents=latents,
        actions=[scale_actions(record["action"], low, high) for record in records],
        # ManiSkill's recordings were not disturbed.
        executed=[scale_actions(record.get("executed", record["action"]), low, high) for record in records],
        texts=[instruction_tokens(config.text, instruction, run.workdir) for instruction in run.instructions],
        tasks=episodes.parts,
        packages=config.train.packages,
        chunk=config.model.chunk,
        lookahead=config.model.lookahead,
        rest=rest,
        stride=episodes.strides(),
        taught=[record.get("taught", np.ones(len(record["action"]), bool)) for record in records],
    )


def _announce(what: str, run: Run, train: int, held_out: int, module: Functional, steps: int) -> None:
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0)))) / 1e6
    place = jax.devices()[0].platform
    if run.mesh is not None:
        axes = ",".join(f"{axis}:{size}" for axis, size in run.mesh.shape.items())
        place = f"{run.mesh.size} {place} devices ({axes}) of {jax.process_count()} processes"
    processes.say(
        f"{what} for {', '.join(run.learnt)}: {size:.2f}M parameters, {steps} steps on {place}, "
        f"{train} demonstrations to train on, {held_out} held out"
    )
