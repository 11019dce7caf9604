"""Trains a small PAR for a few steps on a mesh: `python -m tests.sharded OUT MESH [ADDRESS PROCESSES PROCESS]`.

OUT gets the losses and the state afterwards; MESH is as --mesh takes it, or none.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from par_jax import processes, sharding
from par_jax.data.windows import Windows, window_batches
from par_jax.losses import policy_loss
from par_jax.model.par import PAR
from par_jax.model.text import tokenize
from par_jax.nn.functional import Functional
from par_jax.train import init_state, make_train_step
from par_jax.trees import flatten
from tests.demos import SMALL
from tests.model.conftest import random_params

STEPS = 3
# Attention's key biases have no gradient but rounding's, and AdamW makes whole steps of it: they must be short ones.
CONFIG = dataclasses.replace(
    SMALL, train=dataclasses.replace(SMALL.train, batch=16, learning_rate=1e-5, warmup=1, frame_share=0.5)
)


def virtual(devices: int) -> dict[str, str]:
    """The environment of a process that sees so many devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


def free_address() -> str:
    """Where processes can meet."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def run(out: Path, mesh: str, devices: int = 8, count: int = 1) -> dict[str, np.ndarray]:
    """What `train` gives on `count` processes of `devices` virtual devices each."""
    where = [] if count == 1 else [free_address(), str(count)]
    words = [sys.executable, "-m", "tests.sharded", str(out), mesh, *where]
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen(words + [str(number)] * bool(where), cwd=root, env=virtual(devices)) for number in range(count)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * count
    with np.load(out) as made:
        return dict(made)


def train(mesh: jax.sharding.Mesh | None) -> dict[str, np.ndarray]:
    """The losses, the state after a few steps by name, and the bytes of it that the first device holds."""
    rng, train, model = np.random.default_rng(0), CONFIG.train, CONFIG.model
    lengths = (40, 25, 33, 16, 29)
    windows = Windows(
        latents=[
            rng.normal(size=(n + 1, *CONFIG.latent_size, CONFIG.vae.latent_channels)).astype(np.float16)
            for n in lengths
        ],
        actions=[rng.normal(size=(length, model.action_dim)).astype(np.float32) for length in lengths],
        executed=[rng.normal(size=(length, model.action_dim)).astype(np.float32) for length in lengths],
        texts=[
            tokenize(words, CONFIG.text.tokens, CONFIG.text.vocabulary) for words in ("push the cube", "pick it up")
        ],
        tasks=np.arange(len(lengths)) % 2,
        packages=train.packages,
        chunk=model.chunk,
    )
    par = Functional(lambda rngs: PAR(CONFIG, rngs=rngs))
    step = make_train_step(lambda params, batch, key: policy_loss(par.bind(params), batch, key), train, mesh)
    params = jax.tree.map(np.asarray, random_params(par))
    empty = jax.eval_shape(lambda: init_state(params, train, 0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), empty)
    state = sharding.place(dataclasses.replace(state, params=params, ema=params), mesh)
    data = window_batches(windows, np.arange(5), train.batch, 0, 0.25, processes.rows(train.batch))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, next(data))
        losses.append([float(metrics[name]) for name in ("loss", "action_loss", "frame_loss", "gradient_norm")])
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    arrays = {name: processes.whole(leaf) for name, leaf in flatten((state.params, state.ema)).items()}
    return arrays | {"losses": np.array(losses), "held": np.array(held)}


def train_in_parts(mesh: jax.sharding.Mesh | None) -> dict[str, np.ndarray]:
    """A regression's parameters after a few steps of two parts each: rows are cut into parts where they lie."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def loss(params: dict, batch: dict, _: jax.Array) -> tuple[jax.Array, dict]:
        hidden = jax.numpy.tanh(batch["x"] @ params["embed"]["kernel"])
        return jax.numpy.mean((hidden @ params["head"]["kernel"] - batch["y"]) ** 2), {}

    config = dataclasses.replace(CONFIG.train, learning_rate=1e-2, accumulate=2)
    params = {"embed": {"kernel": draw(3, 16)}, "head": {"kernel": draw(16, 1)}}
    state = sharding.place(jax.jit(lambda: init_state(params, config, 0))(), mesh)
    step = make_train_step(loss, config, mesh)
    for _ in range(STEPS):
        batch = {"x": draw(16, 3), "y": draw(16, 1)}
        state, _ = step(state, jax.tree.map(lambda leaf: leaf[processes.rows(16)], batch))
    return {f"in_parts/{name}": processes.whole(leaf) for name, leaf in flatten(state.params).items()}


def main(out: str, mesh: str, address: str | None = None, count: str = "1", number: str = "0") -> None:
    """Trains and writes."""
    if address is not None:
        processes.join(address, int(count), int(number))
    where = None if mesh == "none" else sharding.make_mesh(mesh)
    made = train(where) | train_in_parts(where)
    if processes.leads():
        np.savez(out, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
