"""The training step as it is measured: on random parameters and sequences, or compiled for its shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import lora
from par_jax.bench import timing
from par_jax.bench.compiling import compiled, memory
from par_jax.bench.hardware import Peaks
from par_jax.bench.question import Question, compared, gib, indented, say
from par_jax.bench.subject import models, random_params
from par_jax.config import Config, TrainConfig
from par_jax.costs import costs
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
        executed=normal(rows, n, m.chunk, m.action_dim),
        actions=normal(rows, n + m.lookahead - 1, m.chunk, m.action_dim),
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


def measured(question: Question, weights: Params | None, peaks: Peaks) -> dict[str, Any]:
    """Times training steps, and says so.

    Args:
      question: its configuration is that of the model as it is trained, adapters included.
      weights: of `PAR`, under "par"; None for random ones.
      peaks: of the device.
    """
    config, train = question.config, question.config.train
    host = random_params(models(config)[0]) if weights is None else weights["par"]
    step = whole_step(loss_of(models(config)[0]), train)
    peer = None
    if question.peer:
        from par_jax.bench.peer import Peer  # it imports this module

        vae = random_params(models(config)[1], 1)
        peer = Peer(config, {"par": host, "vae": vae})
    state, batch, frozen = concrete(config, host)
    runs = {} if peer is None else peer.training(state, batch, frozen, indented)
    program, making = compiled(step, state, batch, frozen)
    call = repeated(program, state, batch, frozen)
    seconds = timing.many(call, question.steps)
    median, count, flops = float(np.median(seconds)), tokens(config, train.batch), costs(config).train_flops
    device = (jax.config.jax_default_device or jax.devices()[0]).memory_stats() or {}
    mfu = flops / median / peaks.flops if peaks.flops else 0.0
    found: dict[str, Any] = timing.spread(seconds) | {
        "batch": train.batch,
        "dtype": train.dtype,
        "remat": train.remat,
        "compile_s": making,
        "tokens_per_second": count / median,
        "flops": flops,
        "mfu": mfu,
        "memory_by_compiler": memory(program),
        "device_peak_bytes": device.get("peak_bytes_in_use"),
    }
    say(f"  training, batch {train.batch} of {train.packages} packages, {train.dtype}, remat {train.remat}")
    say(
        f"  {'a step':<18}{found['median_ms']:>7.0f} ms{found['p99_ms']:>7.0f} ms{making:>7.1f} s"
        f"   {found['tokens_per_second']:,.0f} tokens/s, MFU {100 * mfu:.1f}%, {_memory(found)}"
    )
    if runs:
        found["torch over jax, training step"] = compared("training step", {"jax": call} | runs, question.rounds)
    return found


def _memory(found: dict[str, Any]) -> str:
    parts, peak = found["memory_by_compiler"], found["device_peak_bytes"]
    text = f"{gib(parts['peak'])} by the compiler" if parts else "no memory analysis here"
    return text if peak is None else f"{text}, {gib(peak)} at most on the device"
