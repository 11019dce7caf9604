"""The training loop, which can be stopped at any moment and goes on bit for bit.

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
import numpy as np
from jax.sharding import Mesh

from par_jax import processes, sharding
from par_jax.checkpoint import Checkpoints
from par_jax.errors import UserError, is_full_disk
from par_jax.locks import locked
from par_jax.metrics import Metrics, Silence, describe
from par_jax.train import TrainState, TrainStep, Tree
from par_jax.trees import flatten


class DataIterator(Protocol):
    """What training asks of its data: grain's iterators are such."""

    def __next__(self) -> Tree:
        """The next batch."""

    def get_state(self) -> dict:
        """The position, JSON-able."""

    def set_state(self, state: dict) -> None:
        """Goes to a position."""


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
    taken = f"another process trains in {workdir}: wait for it, or end it"
    with contextlib.ExitStack() as held:
        processes.in_turn(lambda: held.enter_context(locked(workdir, taken)) if processes.leads() else None)
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
