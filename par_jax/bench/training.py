"""The training step as it is measured: on random parameters, or compiled for its shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import lora
from par_jax.bench.subject import models
from par_jax.config import Config, TrainConfig
from par_jax.losses import policy_loss
from par_jax.nn.functional import Functional, Params
from par_jax.train import Loss, TrainState, init_state, make_train_step
from par_jax.types import Batch


def loss_of(par: Functional) -> Loss:
    """The policy's objective as the training step takes it."""
    return lambda params, batch, key: policy_loss(par.bind(params), batch, key)


def sequences(config: Config, rows: int) -> Batch:
    """A batch of random sequences, on the host; rows differ in whether they have a past."""
    m, n, (height, width) = config.model, config.train.packages, config.latent_size
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    size = (rows, config.text.tokens)
    if config.text.kind == "words":
        text = rng.integers(0, config.text.vocabulary, size).astype(np.int32)
    else:
        text = normal(*size, config.text.dim)
    return Batch(
        latents=normal(rows, n + 1, height, width, config.vae.latent_channels),
        actions=normal(rows, n + m.lookahead, m.chunk, m.action_dim),
        has_past=np.arange(rows) % 2 == 1,
        valid=np.ones((rows, n + m.lookahead - 1, m.chunk), bool),
        frame_valid=np.ones((rows, n), bool),
        text=text,
    )


def tokens(config: Config, rows: int) -> int:
    """The transformer's tokens of a batch."""
    return rows * (config.text.tokens + config.train.packages * (config.frame_tokens + config.model.chunk))


def whole_step(loss: Loss, train: TrainConfig) -> Any:
    """One jitted function (state, batch, frozen or None) -> (state, metrics) whose state is given away."""

    def step(state: TrainState, batch: Any, frozen: Params | None) -> tuple[TrainState, dict[str, jax.Array]]:
        return make_train_step(loss, train, frozen=frozen)(state, batch)

    return jax.jit(step, donate_argnums=0)


def abstract(config: Config) -> tuple[TrainState, Batch, Params | None]:
    """Shapes of the step's arguments: nothing is made."""
    par, train = models(config)[0], config.train
    trained, frozen = lora.split(jax.eval_shape(par.init, jax.random.key(0)))
    state = jax.eval_shape(lambda params: init_state(params, train, 0), trained)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, sequences(config, train.batch)))
    return state, batch, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, train.dtype), frozen) or None


def concrete(config: Config, params: Params) -> tuple[TrainState, Batch, Params | None]:
    """The step's arguments around float32 `params`, on the device."""
    train = config.train
    trained, frozen = lora.split(params)
    state = jax.jit(lambda params: init_state(params, train, 0))(trained)
    batch = jax.device_put(sequences(config, train.batch))
    return state, batch, jax.tree.map(lambda leaf: jnp.asarray(leaf, train.dtype), frozen) or None


def repeated(step: Callable[..., Any], state: TrainState, batch: Batch, frozen: Params | None) -> Callable[[], Any]:
    """Steps one after the other, each on the state that the last one left; gives the loss."""

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch, frozen)
        return metrics["loss"]

    return run


def step_key(state: TrainState) -> jax.Array:
    """The key of the step that comes next."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
