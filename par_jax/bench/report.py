"""One benchmark: acting, and training where it is asked for. PyTorch is imported for a peer only."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.acting import acting, acting_params
from par_jax.bench import timing, training
from par_jax.bench.hardware import Peaks
from par_jax.bench.question import Question, compared, indented, say, times
from par_jax.bench.subject import FRAME, PARTS, WHOLE, Subject, models, random_params
from par_jax.config import Config
from par_jax.costs import costs
from par_jax.errors import UserError
from par_jax.nn.functional import Params
from par_jax.release import load_policy

# The episode whose first and last steps are compared.
EPISODE = 200


def run(question: Question, limits: Callable[[], Peaks]) -> dict[str, Any]:
    """Measures, and prints as it goes.

    Args:
      question: what to measure.
      limits: tells the device's. It is asked before and after the timing, and the higher answers count: other programs
        may have held up the one measurement or the other.

    Returns:
      All numbers, JSON-able.
    """
    config, weights = question.config, None
    if question.checkpoint is not None:
        config, _, weights = load_policy(question.checkpoint)
        config = dataclasses.replace(config, train=question.config.train)
    say(f"\n{config.name}, batch {question.batch}, {question.dtype}")
    found: dict[str, Any] = {
        "preset": config.name,
        "batch": question.batch,
        "dtype": question.dtype,
        "action_steps": config.diffusion.action_steps,
    }
    found["acting"], peaks = _acting(dataclasses.replace(question, config=config), weights, limits)
    found["peaks"] = dataclasses.asdict(peaks)
    if question.train:
        found["training"] = training.measured(dataclasses.replace(question, config=config), weights, peaks)
    return found


def _acting(question: Question, weights: Params | None, limits: Callable[[], Peaks]) -> tuple[dict[str, Any], Peaks]:
    config = acting(question.config, question.frames)
    if question.frames and not config.model.predict_frames:
        raise UserError("this model predicts no frames: leave out --frames")
    if weights is None:
        par, vae = models(config)
        weights = {"par": random_params(par), "vae": random_params(vae, 1)}
    else:
        weights = acting_params(question.config, weights, question.frames)
    subject = Subject(config, weights, question.batch, question.dtype)
    counted = costs(config, question.batch, jnp.dtype(question.dtype).itemsize)
    work = subject.work(counted.step_flops) | {FRAME: (float(counted.frame_flops), 0.0)}

    whole = set(question.parts) == set(PARTS)
    names = [*question.parts, *([WHOLE] if whole else []), *([FRAME] if question.frames else [])]
    peaks = limits()
    found: dict[str, Any] = {}
    for name in names:
        say(f"  timing: {name}")
        call = subject.run(name)
        first = timing.once(call)
        seconds = timing.many(call, question.steps)
        found[name] = timing.spread(seconds) | {"compile_s": max(first - float(np.median(seconds)), 0.0)}
    peaks = peaks.or_higher(limits())
    say(f"  peaks: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bandwidth / 1e9:.4g} GB/s ({peaks.source})")
    say(f"  {'acting':<18}{'median':>10}{'p99':>10}{'compile':>9}   floors: products, memory    reached")
    for name in names:
        row, floors = found[name], peaks.floor(*work[name])
        row["flops"], row["bytes"] = work[name]
        row["flops_floor_ms"], row["bytes_floor_ms"] = (1e3 * floor for floor in floors)
        row["reached"] = 1e3 * max(floors) / row["median_ms"]
        say(
            f"  {name:<18}{row['median_ms']:>7.2f} ms{row['p99_ms']:>7.2f} ms{row['compile_s']:>7.1f} s"
            f"   {row['flops_floor_ms']:>9.3f} ms {row['bytes_floor_ms']:>8.3f} ms {100 * row['reached']:>9.1f}%"
        )
    timed = WHOLE if whole else "transformer"
    if timed in names:
        count = int(np.clip(timing.ENOUGH / (1e-3 * found[timed]["median_ms"]), 1, 10))
        found["late_over_early"] = _growth(subject, timed, question.rounds, count)
        say(f"  an episode's last steps, of {EPISODE}, over its first: {times(found['late_over_early'])}")
    if question.rounding:
        found["rounding"] = _rounding(config, weights, subject)
        say(f"  actions in {question.dtype} differ from float32's by {100 * found['rounding']:.2f}%")
    if question.peer:
        from par_jax.bench.peer import Peer

        peer = Peer(config, weights)
        for name in [WHOLE] if whole else question.parts:
            runs = {"jax": subject.run(name)} | peer.acting(subject, name, indented)
            found[f"torch over jax, {name}"] = compared(name, runs, question.rounds)
    return found, peaks


def _growth(subject: Subject, name: str, rounds: int, count: int) -> dict[str, float]:
    """As many steps at an episode's end as at its beginning, in turn."""
    times = {0: [], EPISODE - count: []}
    for _ in range(rounds):
        for at, kept in times.items():
            call = subject.run(name, at)
            kept.append(np.median([timing.once(call) for _ in range(count)]))
    early, late = (np.array(kept) for kept in times.values())
    return timing.ratio(late, early)


def _rounding(config: Config, weights: Params, subject: Subject) -> float:
    """How far three steps' actions lie from float32's of the same noise, relative to their size."""
    exact = Subject(config, weights, subject.batch, "float32")
    far = []
    with jax.default_matmul_precision("highest"):
        ours, theirs = subject.run(WHOLE), exact.run(WHOLE)
        for _ in range(3):
            a, b = (np.concatenate([np.asarray(x) for x in call()], axis=1) for call in (ours, theirs))
            far.append(float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    return max(far)
