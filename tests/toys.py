"""A two-layer regression that trains in a millisecond a step: what the training loop is tested with."""

from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from par_jax.config import TrainConfig
from par_jax.loop import Result, fit
from par_jax.train import TrainState, init_state, make_train_step

TOY = TrainConfig(steps=20, batch=4, learning_rate=1e-2, warmup=2)


def first_state() -> TrainState:
    keys = jax.random.split(jax.random.key(0))
    params = {
        "layers": {0: {"kernel": jax.random.normal(keys[0], (3, 8)), "bias": jnp.zeros(8)}},
        "out": {"kernel": jax.random.normal(keys[1], (8, 1))},
    }
    return init_state(params, TOY, seed=0)


def loss(params: dict, batch: dict, key: jax.Array, noise: float = 0.1) -> tuple[jax.Array, dict]:
    x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape, batch["x"].dtype)
    hidden = jnp.tanh(x @ params["layers"][0]["kernel"] + params["layers"][0]["bias"])
    error = jnp.mean((hidden @ params["out"]["kernel"] - batch["y"]) ** 2)
    return error, {"half": error.astype(jnp.float32) / 2}


def batches(seed: int = 0, touch: Callable[[dict], dict] = lambda batch: batch) -> grain.DatasetIterator:
    """Endless batches; `touch` sees each as it is made, in order."""

    def one(i: int, rng: np.random.Generator) -> dict:
        x = rng.normal(size=3).astype(np.float32)
        return {"x": x, "y": np.sin(x[:1]), "number": np.asarray(i)}

    data = grain.MapDataset.range(7).seed(seed).shuffle().repeat().random_map(one).batch(TOY.batch).map(touch)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


class Trips:
    """A data iterator that calls `act(batch)` on its n-th batch, counted from this process's first."""

    def __init__(self, at: int, act: Callable[[dict], None]):
        self.data, self.left, self.act = batches(), at, act

    def __next__(self) -> dict:
        batch = next(self.data)
        self.left -= 1
        if self.left == 0:
            self.act(batch)
        return batch

    def get_state(self) -> dict:
        return self.data.get_state()

    def set_state(self, state: dict) -> None:
        self.data.set_state(state)


def train(workdir: Path, data: object = None, **changes: object) -> Result:
    options = {"steps": TOY.steps, "log_every": 3, "checkpoint_every": 4} | changes
    return fit(jax.jit(first_state), make_train_step(loss, TOY), data or batches(), workdir, **options)
