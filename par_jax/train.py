"""Training: the state and one step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from par_jax import sharding
from par_jax.config import TrainConfig
from par_jax.trees import flatten, nest

Tree = Any
Loss = Callable[[Tree, Tree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
TrainStep = Callable[["TrainState", Tree], tuple["TrainState", dict[str, jax.Array]]]


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


def orthogonalised(params: Tree) -> Tree:
    """Which leaves Muon moves: the kernels of transformer blocks; as optax wants it told, None for the others."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    names = [name.split("/") for name in flatten(params)]
    chosen = [axes if "blocks" in parts and parts[-1] == "kernel" else None for parts in names]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW, or Muon for the blocks' kernels and AdamW for the rest, behind clipping by the global norm.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), so that one learning rate and one
    weight decay do for both.
    """
    rate, decay = schedule(config), config.weight_decay
    optimizer = optax.adamw(rate, b2=0.95, weight_decay=decay, mask=decayed)
    if config.optimizer == "muon":
        muon = optax.contrib.muon(
            rate, weight_decay=decay, consistent_rms=0.2, muon_weight_dimension_numbers=orthogonalised
        )
        optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _movers)
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)


def _movers(params: Tree) -> Tree:
    axes = jax.tree.leaves(orthogonalised(params), is_leaf=lambda leaf: not isinstance(leaf, dict))
    return jax.tree.unflatten(jax.tree.structure(params), ["adamw" if leaf is None else "muon" for leaf in axes])


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
      loss: (params, batch, key) -> (loss [], metrics); params come in `config.dtype`, while those that the optimizer
        moves stay float32, and so does the batch.
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
        value, parts = loss(sharding.gathered(params), batch, key)
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
