"""Noise schedules, targets and samplers of the diffusion loss (paper sections 3.1, 3.2)."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


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

    def sample(self, denoise: Denoiser, noise: jax.Array, steps: int, key: jax.Array) -> jax.Array:
        """Runs the chain from pure noise to a sample."""
        ...


def _like(t: jax.Array, x: jax.Array) -> jax.Array:
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Flow:
    """Flow matching: straight lines from data (t = 0) to noise (t = 1); the target is their direction."""

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Logit-normal times in (0, 1)."""
        return jax.nn.sigmoid(jax.random.normal(key, shape))

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """The point at time t on the line."""
        t = _like(t, x)
        return t * noise + (1 - t) * x

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The line's direction."""
        return noise - x

    def timestep(self, t: jax.Array) -> jax.Array:
        """Times in thousandths."""
        return 1000.0 * t

    def sample(self, denoise: Denoiser, noise: jax.Array, steps: int, key: jax.Array) -> jax.Array:
        """Euler's method in equal steps. Deterministic: `key` is not used.

        Args:
          denoise: (x, timestep []) -> predicted direction, both shaped as noise.
        """
        times = jnp.linspace(1.0, 0.0, steps + 1)

        def body(x: jax.Array, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            now, then = span
            return x + (then - now).astype(x.dtype) * denoise(x, self.timestep(now)), None

        return jax.lax.scan(body, noise, (times[:-1], times[1:]))[0]


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ho et al.'s diffusion with the squared-cosine schedule over 1000 steps; the target is the noise (eq. 3)."""

    def _alpha_bar(self) -> np.ndarray:
        grid = np.arange(1001) / 1000
        bar = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        return np.cumprod(1 - beta).astype(np.float32)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform integer times in 0 .. 999."""
        return jax.random.randint(key, shape, 0, 1000)

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Section 3.2's x_t."""
        bar = _like(jnp.asarray(self._alpha_bar())[t], x)
        return jnp.sqrt(bar) * x + jnp.sqrt(1 - bar) * noise

    def target(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """The noise."""
        return noise

    def timestep(self, t: jax.Array) -> jax.Array:
        """Times are thousandths already."""
        return t.astype(jnp.float32)

    def sample(self, denoise: Denoiser, noise: jax.Array, steps: int, key: jax.Array) -> jax.Array:
        """The ancestral chain (eq. 5), respaced to `steps` of the 1000 times.

        Args:
          denoise: (x, timestep []) -> predicted noise, both shaped as noise.
        """
        times = np.linspace(999, 0, steps).round().astype(np.int32)
        bar = self._alpha_bar()[times]
        before = np.append(bar[1:], np.float32(1.0))

        def body(x: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            t, a, b, key = step
            eps = denoise(x, self.timestep(t))
            clean = (x - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)
            alpha = a / b
            mean = (jnp.sqrt(b) * (1 - alpha) * clean + jnp.sqrt(alpha) * (1 - b) * x) / (1 - a)
            sigma = jnp.sqrt((1 - b) / (1 - a) * (1 - alpha))
            return (mean + sigma * jax.random.normal(key, x.shape)).astype(x.dtype), None

        xs = (jnp.asarray(times), jnp.asarray(bar), jnp.asarray(before), jax.random.split(key, steps))
        return jax.lax.scan(body, noise, xs)[0]


SCHEDULES: dict[str, Schedule] = {"flow": Flow(), "ddpm": DDPM()}
