"""Noise schedules, targets and samplers of the diffusion loss (paper sections 3.1, 3.2)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.errors import UserError

Denoiser = Callable[[jax.Array, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A sampler as a table: step i makes `keep[i] * x + push[i] * prediction + spread[i] * noise` of x.

    Every sampler used here is linear in the prediction, so that one loop runs them all.

    Attributes:
      timesteps: [N] float32, what the denoiser is told.
      keep, push, spread: [N] float32.
    """

    timesteps: np.ndarray
    keep: np.ndarray
    push: np.ndarray
    spread: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, part: slice) -> "Chain":
        return Chain(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    def run(self, denoise: Denoiser, x: jax.Array, draws: jax.Array, told: Any = None) -> jax.Array:
        """Runs the chain.

        Args:
          denoise: (x, timestep []) -> prediction, shaped as x.
          x: where the chain starts, pure noise for the whole chain.
          draws: a key; or each step's noise, [N, *x.shape].
          told: what the denoiser gets instead of the timesteps: a pytree of arrays [N, ..].
        """
        rows = tuple(jnp.asarray(column, jnp.float32) for column in (self.keep, self.push, self.spread))
        told = jnp.asarray(self.timesteps, jnp.float32) if told is None else told
        keyed = jnp.issubdtype(draws.dtype, jax.dtypes.prng_key)
        noisy = bool(self.spread.any())

        def body(x: jax.Array, row: tuple) -> tuple[jax.Array, None]:
            (keep, push, spread), t, draw = row
            y = keep.astype(x.dtype) * x + push.astype(x.dtype) * denoise(x, t)
            if noisy:
                noise = jax.random.normal(draw, x.shape, x.dtype) if keyed else draw.astype(x.dtype)
                y = y + spread.astype(x.dtype) * noise
            return y, None

        draws = jax.random.split(draws, len(self)) if keyed else draws
        return jax.lax.scan(body, x, (rows, told, draws if noisy else None))[0]


def ddpm_chain(
    timesteps: np.ndarray, bar: np.ndarray, before: np.ndarray, prediction: str = "epsilon", large: bool = False
) -> Chain:
    """The ancestral chain (paper eq. 5; Ho et al. 2020, eq. 6 and 7).

    Args:
      timesteps: [N], falling.
      bar, before: [N] cumulated alphas at each time and at the one that the step leads to.
      prediction: "epsilon", "sample" or "v_prediction".
      large: the variance is beta itself, not the posterior's.
    """
    # Rounded where PyTorch rounds: between neighbouring times of a fine chain that shows.
    bar, before = bar.astype(np.float32), before.astype(np.float32)
    alpha, rest, rest_before = (part.astype(np.float64) for part in (bar / before, 1 - bar, 1 - before))
    beta = (1 - bar / before).astype(np.float64)
    bar, before = bar.astype(np.float64), before.astype(np.float64)
    from_clean = np.sqrt(before) * beta / rest
    from_x = np.sqrt(alpha) * rest_before / rest
    if prediction == "epsilon":
        clean_x, clean_prediction = 1 / np.sqrt(bar), -np.sqrt(rest) / np.sqrt(bar)
    elif prediction == "sample":
        clean_x, clean_prediction = np.zeros_like(bar), np.ones_like(bar)
    else:
        clean_x, clean_prediction = np.sqrt(bar), -np.sqrt(rest)
    variance = beta if large else np.maximum(rest_before / rest * beta, 1e-20)
    columns = (
        timesteps,
        from_x + from_clean * clean_x,
        from_clean * clean_prediction,
        np.where(timesteps > 0, np.sqrt(variance), 0.0),
    )
    return Chain(*(column.astype(np.float32) for column in columns))


class Schedule(Protocol):
    """What both kinds of diffusion offer. Times are shared by the trailing axes of what they noise."""

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Random times for training."""
        ...

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x at time t."""
        ...

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """What the denoiser has to predict."""
        ...

    def timestep(self, t: jax.Array) -> jax.Array:
        """t as the denoiser is told it, in 0 .. 1000."""
        ...

    def chain(self, steps: int) -> Chain:
        """From pure noise to a sample in `steps` steps."""
        ...


def like(t: jax.Array, x: jax.Array) -> jax.Array:
    """t with trailing axes of one, so that it meets x; in the type of x."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Flow:
    """Flow matching: straight lines from data (t = 0) to noise (t = 1); the target is their direction.

    Attributes:
      shift: moves times towards noise, t to shift t / (1 + (shift - 1) t), in training and in sampling (SD3, arXiv
        2403.03206, eq. 23). Where a sample's numbers say the same thing many times over, as the positions of a smooth
        motion do, they show through noise that would hide a single one of them.
    """

    shift: float = 1.0

    def _shifted(self, t: Any) -> Any:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Logit-normal times in (0, 1), shifted."""
        return self._shifted(jax.nn.sigmoid(jax.random.normal(key, shape)))

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """The point at time t on the line."""
        t = like(t, x)
        return t * noise + (1 - t) * x

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The line's direction."""
        return noise - x

    def timestep(self, t: jax.Array) -> jax.Array:
        """Times in thousandths."""
        return 1000.0 * t

    def chain(self, steps: int) -> Chain:
        """Euler's method in equal steps of what is then shifted."""
        times = self._shifted(np.linspace(1.0, 0.0, steps + 1))
        ones = np.ones(steps, np.float32)
        return Chain((1000 * times[:-1]).astype(np.float32), ones, np.diff(times).astype(np.float32), 0 * ones)


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ho et al.'s diffusion with the squared-cosine schedule over 1000 steps; the target is the noise (eq. 3)."""

    def _alpha_bar(self) -> np.ndarray:
        return np.cumprod(1 - cosine_betas(1000)).astype(np.float32)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform integer times in 0 .. 999."""
        return jax.random.randint(key, shape, 0, 1000)

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Section 3.2's x_t."""
        bar = like(jnp.asarray(self._alpha_bar())[t], x)
        return jnp.sqrt(bar) * x + jnp.sqrt(1 - bar) * noise

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The noise."""
        return noise

    def timestep(self, t: jax.Array) -> jax.Array:
        """Times are thousandths already."""
        return t.astype(jnp.float32)

    def chain(self, steps: int) -> Chain:
        """The ancestral chain (eq. 5), respaced to `steps` of the 1000 times."""
        times, bar, before = self._spaced(steps)
        return ddpm_chain(times, bar, before)

    def _spaced(self, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times, and cumulated alphas there and one step further.

        A few steps do not begin at the last time, where all but the noise is gone: what the denoiser misses there
        would be scaled up a thousandfold.
        """
        times = np.arange(steps)[::-1] * (1000 // steps)
        bar = self._alpha_bar()[times]
        return times, bar, np.append(bar[1:], np.float32(1.0))


@dataclasses.dataclass(frozen=True)
class DDIM(DDPM):
    """What DDPM has learned, sampled without noise on the way (Song et al. 2021, eq. 12 with sigma = 0)."""

    def chain(self, steps: int) -> Chain:
        """The deterministic chain through `steps` of the 1000 times."""
        times, bar, before = self._spaced(steps)
        bar, before = bar.astype(np.float64), before.astype(np.float64)
        keep = np.sqrt(before / bar)
        push = np.sqrt(1 - before) - keep * np.sqrt(1 - bar)
        return Chain(*(column.astype(np.float32) for column in (times, keep, push, 0 * keep)))


def cosine_betas(steps: int) -> np.ndarray:
    """Nichol and Dhariwal's squared-cosine schedule, betas cut at 0.999: [steps] float64."""
    grid = np.arange(steps + 1) / steps
    bar = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


SCHEDULES: dict[str, Schedule] = {"flow": Flow(), "ddpm": DDPM(), "ddim": DDIM()}


def schedule_of(name: str, shift: float = 1.0) -> Schedule:
    """The schedule of that name, in `SCHEDULES`; flow matching with a shift."""
    return Flow(shift) if name == "flow" else SCHEDULES[name]


# Samplers of what was trained with a schedule, its own first.
SAMPLERS = {"flow": ("flow",), "ddpm": ("ddpm", "ddim")}


def check_sampler(schedule: str, sampler: str | None, **shifts: float) -> None:
    """Refuses a sampler that cannot sample what was trained.

    Args:
      schedule, sampler: their names; None for the schedule's own.
      **shifts: of times, by the flags that ask for them.

    Raises:
      UserError: an unknown name, another schedule's sampler, or a shift of what has none.
    """
    if schedule not in SAMPLERS:
        raise UserError(f"unknown noise schedule {schedule!r}: choose one of {', '.join(SAMPLERS)}")
    for name, shift in shifts.items():
        if schedule != "flow" and shift != 1:
            raise UserError(f"the noise schedule {schedule!r} has no shift: give --{name}=1")
    if sampler is not None and sampler not in SAMPLERS[schedule]:
        raise UserError(
            f"the sampler {sampler!r} cannot be used: with the noise schedule {schedule!r} choose one of "
            f"{', '.join(SAMPLERS[schedule])}"
        )
