"""NOVA's noise schedules, from a checkpoint's `scheduler_config.json`.

Training draws an index into a table of noise levels; sampling runs a `Chain`. Both follow the published
PyTorch schedulers, where they are quirky too: flow matching applies its shift to the ends of the range and
again to what lies between them, and DDPM's step always leads 1000 // steps back.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.diffusion import Chain, cosine_betas, ddpm_chain, like
from par_jax.errors import UserError

FLOW, DDPM = "FlowMatchEulerDiscreteScheduler", "DDPMScheduler"
# Keys of either class that do not change what is computed here, whatever they hold: NOVA's step never clips.
_IDLE = (
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "thresholding",
)
_DEFAULTS: dict[str, dict[str, Any]] = {
    FLOW: {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
    DDPM: {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "variance_type": "fixed_small",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """A noise schedule.

    Attributes:
      config: the scheduler's settings, with every default filled in.
      kind: `FLOW` or `DDPM`.
      shift: flow matching's, between the ends of the range, when sampling; the ends keep the configured one.
    """

    config: dict[str, Any]
    kind: str
    shift: float = 1.0

    @property
    def predicts_noise(self) -> bool:
        """Whether training's target is the noise; otherwise noise minus data."""
        return self.kind == DDPM and self.config["prediction_type"] == "epsilon"

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Timestep, share of the data and share of the noise at each training index: three [T] float32."""
        count = self.config["num_train_timesteps"]
        if self.kind == FLOW:
            sigmas = np.arange(count, 0, -1, dtype=np.float32) / np.float32(count)
            sigmas = _shifted(sigmas, self.config["shift"])
            return sigmas * np.float32(count), 1 - sigmas, sigmas
        bar = self._alpha_bar()
        return np.arange(count, dtype=np.float32), np.sqrt(bar), np.sqrt(1 - bar)

    def noised(self, x: jax.Array, noise: jax.Array, index: jax.Array) -> jax.Array:
        """x with its share of noise at each index, which is shared by the trailing axes of x."""
        _, data, share = (jnp.asarray(table) for table in self.tables())
        return like(data[index], x) * x + like(share[index], x) * noise

    def timestep(self, index: jax.Array) -> jax.Array:
        """What the denoiser is told at each index, float32."""
        return jnp.asarray(self.tables()[0])[index]

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """What the denoiser has to predict."""
        return noise if self.predicts_noise else noise - x

    def chain(self, steps: int) -> Chain:
        """From pure noise to a sample.

        Raises:
          UserError: more steps than the schedule has, or none.
        """
        count = self.config["num_train_timesteps"]
        if not 1 <= steps <= count:
            raise UserError(f"{steps} denoising steps: give 1 to {count}")
        if self.kind == FLOW:
            first, last = _shifted(np.array([1, 1 / count], np.float32), self.config["shift"]) * count
            sigmas = _shifted(np.linspace(first, last, steps, dtype=np.float32) / np.float32(count), self.shift)
            ones = np.ones(steps, np.float32)
            push = np.diff(np.append(sigmas.astype(np.float64), 0.0)).astype(np.float32)
            return Chain(sigmas * np.float32(count), ones, push, 0 * ones)
        times = self._spaced(steps)
        if times.max() >= count:
            raise UserError(
                f"{steps} denoising steps reach time {times.max()} of {count}: the scheduler's steps_offset of "
                f"{self.config['steps_offset']} leaves room for fewer steps"
            )
        bar, previous = self._alpha_bar(), times - count // steps
        before = np.where(previous >= 0, bar[np.maximum(previous, 0)], np.float32(1.0))
        return ddpm_chain(
            times,
            bar[times],
            before,
            self.config["prediction_type"],
            large=self.config["variance_type"] == "fixed_large",
        )

    def _alpha_bar(self) -> np.ndarray:
        """Cumulated alphas, [T] float32, rounded where PyTorch rounds: next to a beta of 0.999 that shows."""
        c = self.config
        count, start, end = c["num_train_timesteps"], c["beta_start"], c["beta_end"]
        if c["trained_betas"] is not None:
            betas = np.asarray(c["trained_betas"])
        else:
            betas = {
                "linear": lambda: np.linspace(start, end, count),
                "scaled_linear": lambda: np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2,
                "squaredcos_cap_v2": lambda: cosine_betas(count),
                "sigmoid": lambda: (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start,
            }[c["beta_schedule"]]()
        alphas = np.float32(1) - betas.astype(np.float32)
        if c["rescale_betas_zero_snr"]:
            alphas = _zero_terminal(alphas)
        return _products(alphas)

    def _spaced(self, steps: int) -> np.ndarray:
        count, spacing = self.config["num_train_timesteps"], self.config["timestep_spacing"]
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps).round()[::-1].astype(np.int64)
        if spacing == "trailing":
            return np.arange(count, 0, -count / steps).round().astype(np.int64) - 1
        return np.arange(steps)[::-1] * (count // steps) + self.config["steps_offset"]


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return (np.float32(shift) * sigmas / (1 + np.float32(shift - 1) * sigmas)).astype(np.float32)


def _products(alphas: np.ndarray) -> np.ndarray:
    """Cumulated products of float32, summed up in float64 as PyTorch does."""
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _zero_terminal(alphas: np.ndarray) -> np.ndarray:
    """Alphas whose product ends at zero and begins where it did (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(_products(alphas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return np.append(bar[:1], bar[1:] / bar[:-1])


def make_scheduler(config: dict[str, Any], shift: float | None = None) -> Scheduler:
    """A schedule from a `scheduler_config.json`.

    Args:
      config: the file's content.
      shift: replaces flow matching's shift between the ends of the range.

    Raises:
      UserError: the class, a key or a value is not one that NOVA's checkpoints may have.
    """
    kind = config.get("_class_name")
    if kind not in _DEFAULTS:
        raise UserError(f"the scheduler {kind!r} is not known: NOVA uses {FLOW} or {DDPM}")
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in _IDLE}
    unknown = sorted(set(given) - set(_DEFAULTS[kind]))
    if unknown:
        raise UserError(f"the scheduler's configuration has keys that this version does not know: {', '.join(unknown)}")
    values = {**_DEFAULTS[kind], **given}
    allowed = {
        "use_dynamic_shifting": (False,),
        "prediction_type": ("epsilon", "sample", "v_prediction"),
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    }
    for key, choices in allowed.items():
        if key in values and values[key] not in choices:
            raise UserError(
                f"the scheduler's {key} is {values[key]!r}: only {', '.join(map(repr, choices))} can be sampled"
            )
    return Scheduler(values, kind, values.get("shift", 1.0) if shift is None else shift)
