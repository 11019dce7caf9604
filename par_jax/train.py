"""Training: the state, one step, and the loop that can be stopped at any moment and goes on bit for bit.

A run's numbers depend on its configuration, its data and its seed alone: every step's randomness is folded
from the key and the step, the data iterator's position stands in the checkpoint, and so do the sums of the
console line that a stop has interrupted.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from par_jax import processes, sharding
from par_jax.checkpoint import Checkpoints, flatten, is_full_disk, locked, nest
from par_jax.config import TrainConfig
from par_jax.errors import UserError
from par_jax.metrics import Metrics, Silence, describe

Tree = Any
Loss = Callable[[Tree, Tree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
TrainStep = Callable[["TrainState", Tree], tuple["TrainState", dict[str, jax.Array]]]


class DataIterator(Protocol):
    """What training asks of its data: grain's iterators are such."""

    def __next__(self) -> Tree:
        """The next batch."""

    def get_state(self) -> dict:
        """The position, JSON-able."""

    def set_state(self, state: dict) -> None:
        """Goes to a position."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: [] int32, steps done.
      params: float32 parameters.
      opt_state: the optimizer's.
      ema: exponential moving average of `params`.
      key: [2] uint32, the run's random key; constant.
    """

    step: jax.Array
    params: Tree
    opt_state: Tree
    ema: Tree
    key: jax.Array


def schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then a cosine to 0 at the last step; a short run warms up for a tenth of its steps."""
    warmup = min(config.warmup, max(1, config.steps // 10))
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(config.steps, warmup + 1))


def decayed(params: Tree) -> Tree:
    """Which leaves weight decay pulls on: the kernels, not biases, norms, tables and positions (bools)."""
    names = {name: name.rsplit("/", 1)[-1] == "kernel" for name in flatten(params)}
    return jax.tree.unflatten(jax.tree.structure(params), list(names.values()))


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule(config), b2=0.95, weight_decay=config.weight_decay, mask=decayed),
    )


def init_state(params: Tree, config: TrainConfig, seed: int) -> TrainState:
    """A new run's state around float32 `params`; call it under `jax.jit`: no two leaves then share memory."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config).init(params),
        ema=params,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def cast(tree: Tree, dtype: str) -> Tree:
    """Float32 leaves in another dtype; other leaves as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, tree)


def join(params: Tree, frozen: Tree) -> Tree:
    """Two nested dicts of arrays in one, by their leaves' names.

    Raises:
      ValueError: a leaf is in both.
    """
    ours, theirs = flatten(params), flatten(frozen)
    if both := sorted(ours.keys() & theirs.keys()):
        raise ValueError(f"both trained and frozen: {', '.join(both[:3])}")
    return nest(ours | theirs)


def make_train_step(loss: Loss, config: TrainConfig, mesh: Mesh | None = None, frozen: Tree | None = None) -> TrainStep:
    """One jitted step; its state is donated.

    With `config.accumulate` parts, row r of the batch belongs to part r modulo their number, each part draws with a
    key of its own, and gradients and metrics are means over the parts.

    Args:
      loss: (params, batch, key) -> (loss [], metrics); params and batch come in `config.dtype`, while the
        parameters that the optimizer moves stay float32.
      config: of the stage.
      mesh: the devices to compute on, as `par_jax.sharding.make_mesh` makes it; the batch is then this process's
        rows. None for one device.
      frozen: parameters beside the trained ones, nested dicts of arrays in `config.dtype`: the loss gets both joined
        by name. They have no gradient, no optimizer state and no average, and are not part of the state.

    Returns:
      step(state, batch) -> (state, metrics), metrics with `loss`, `gradient_norm` and `learning_rate`.

    Raises:
      UserError: from the step, where the batch does not divide into parts or over the mesh.
    """
    optimizer, rate = make_optimizer(config), schedule(config)

    def computed(params: Tree, frozen: Tree | None, batch: Tree, key: jax.Array) -> tuple[jax.Array, dict]:
        params = cast(params, config.dtype)
        params = params if frozen is None else join(params, frozen)
        value, parts = loss(sharding.gathered(params), cast(batch, config.dtype), key)
        return value.astype(jnp.float32), parts

    def differentiated(*args: Any) -> tuple[tuple[jax.Array, dict], Tree]:
        values, gradients = jax.value_and_grad(computed, has_aux=True)(*args)
        return values, sharding.pinned(gradients, mesh)

    def accumulated(params: Tree, frozen: Tree | None, batch: Tree, key: jax.Array) -> tuple:
        parts = config.accumulate
        if parts == 1:
            return differentiated(params, frozen, batch, key)

        def add(total: Tree, inputs: tuple) -> tuple[Tree, tuple]:
            values, gradients = differentiated(params, frozen, *inputs)
            return jax.tree.map(jnp.add, total, gradients), values

        inputs = (sharding.cut(batch, parts, mesh), jax.random.split(key, parts))
        total, values = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), inputs)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values), jax.tree.map(lambda g: g / parts, total)

    def train_step(state: TrainState, batch: Tree, frozen: Tree | None) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (value, parts), gradients = accumulated(state.params, frozen, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's step counts are integers
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        # The average forgets the first parameters quickly, then settles at the configured decay.
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema, (1.0 + done) / (10.0 + done))
        ema = jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), state.ema, params)
        metrics = {
            "loss": value,
            **parts,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": learning_rate,
        }
        after = TrainState(state.step + 1, params, opt_state, ema, state.key)
        return sharding.pinned(after, mesh), metrics

    compiled = jax.jit(train_step, donate_argnums=0)
    kept = sharding.place(frozen, mesh)

    def step(state: TrainState, batch: Tree) -> tuple[TrainState, dict[str, jax.Array]]:
        with sharding.under(mesh):
            return compiled(state, sharding.spread(batch, mesh, config.accumulate), kept)

    return step


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it gives; a second one raises KeyboardInterrupt at once."""
    caught: list[int] = []

    def handler(number: int, _: Any) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclasses.dataclass(frozen=True)
class Result:
    """How `fit` ended: the state, its step, and the signal that stopped it (None: it is finished)."""

    state: TrainState
    step: int
    signal: int | None


def fit(
    first_state: Callable[[], TrainState],
    train_step: TrainStep,
    data: DataIterator,
    workdir: Path,
    *,
    steps: int,
    log_every: int = 20,
    checkpoint_every: int = 250,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    eval_every: int = 500,
    keep: int = 3,
    shapes: TrainState | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Trains up to `steps`, from the last whole checkpoint in `workdir` if there is one.

    Of several processes, which all have to call this, the first one writes; a signal to any of them stops them all.

    Args:
      first_state: draws a new run's state.
      train_step: as `make_train_step` makes it.
      data: gives batches and its position.
      workdir: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      steps: in all.
      log_every: steps a line of metrics, which holds their means.
      checkpoint_every: steps a checkpoint; one more is written at the end and on Ctrl-C or SIGTERM.
      evaluate: state -> metrics, every `eval_every` steps and after the last one.
      eval_every: see `evaluate`.
      keep: checkpoints kept.
      mesh: that of `train_step`; a run may go on under another one.
      shapes: of the state that a checkpoint must hold; those of `first_state`, which must be jitted then, by default.

    Raises:
      UserError: the loss is not finite, the disk is full, or the checkpoints are damaged or of another model.
    """
    with contextlib.ExitStack() as held:
        processes.in_turn(lambda: held.enter_context(locked(workdir)) if processes.leads() else None)
        checkpoints = held.enter_context(contextlib.closing(Checkpoints(workdir, keep)))
        step, sums, count = 0, {}, 0
        restored = checkpoints.restore(jax.eval_shape(first_state) if shapes is None else shapes)
        if restored is None:
            state = first_state()
        else:
            step, state, progress = restored
            data.set_state(progress["data"])
            sums, count = progress["sums"], progress["count"]
        if step >= steps:
            return Result(state, step, None)
        state = sharding.place(state, mesh)
        numbers = Metrics(workdir, step, steps) if processes.leads() else Silence()
        try:
            with numbers as metrics, stop_signals() as caught:
                metrics.say(f"going on from step {step}" if step else "compiling the training step")

                def save() -> None:
                    progress = {"data": data.get_state(), "sums": sums, "count": count}
                    checkpoints.save(step, state, progress)

                while step < steps and not (stop := processes.agree(caught[0] if caught else 0)):
                    began = time.perf_counter()
                    batch = next(data)
                    state, values = train_step(state, batch)
                    values = {name: float(value) for name, value in jax.device_get(values).items()}
                    _refuse_nan(values, step + 1, batch, workdir, checkpoints)
                    step += 1
                    metrics.advance(values["loss"], time.perf_counter() - began)
                    sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
                    count += 1
                    if step % log_every == 0 or step == steps:
                        means = {name: total / count for name, total in sums.items()}
                        metrics.write(step, means | {"learning_rate": values["learning_rate"]})
                        sums, count = {}, 0
                    if evaluate is not None and (step % eval_every == 0 or step == steps):
                        with sharding.under(mesh):
                            seen = evaluate(state)
                        metrics.write(step, seen, "validation")
                    if step % checkpoint_every == 0 or step == steps:
                        save()
                if checkpoints.saved != step:  # a signal came
                    save()
                checkpoints.wait()
                return Result(state, step, stop if step < steps else None)
        except OSError as error:
            if is_full_disk(error):
                raise checkpoints.explained(error) from error
            raise


def _refuse_nan(values: dict[str, float], step: int, batch: Tree, workdir: Path, checkpoints: Checkpoints) -> None:
    if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
        return
    checkpoints.wait()
    share = "" if jax.process_count() == 1 else f"_of_process_{jax.process_index()}"
    path = workdir / f"nan_batch_{step}{share}.npz"
    np.savez(path, **{name.replace("/", "."): np.asarray(leaf) for name, leaf in flatten(batch).items()})
    stands = "no checkpoint was written yet"
    if checkpoints.saved is not None:
        stands = f"the last good checkpoint stands at {checkpoints.folder / str(checkpoints.saved)}"
    raise UserError(
        f"the loss is not finite at step {step} ({describe(values)}): the batch is in {path} and {stands}; "
        "train again into a new --workdir with a lower --learning_rate, or with --dtype=float32"
    )
