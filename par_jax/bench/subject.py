"""What is measured: a preset's physical step, whole and in parts, with random weights and inputs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import sampling
from par_jax.config import Config
from par_jax.data.pictures import to_unit
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional, Params
from par_jax.policy import PhysicalStep, prepared
from par_jax.trees import flatten, nest
from par_jax.types import Ahead, KVCache

PARTS = ("frame encoding", "transformer", "action head")
WHOLE, FRAME = "whole step", "frame prediction"


def random_params(module: Functional, seed: int = 0) -> Params:
    """Weights of a trained model's size, float32 on the host: no zeros, behind which nothing would be compared.

    They repeat a few million numbers: drawing all of a full-size model's would take minutes.
    """
    pool = np.random.default_rng(seed).standard_normal(2**21 + 17, np.float32)
    place = 0

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal place
        size = math.prod(shape)
        place = (place + 7919) % len(pool)
        values = np.resize(np.roll(pool, place), size).reshape(shape)
        last = name.rsplit("/", 1)[-1]
        if last in ("kernel", "lora_a", "lora_b"):
            taps = shape[:-2] if "/blocks/" not in name else ()
            return values * np.float32((math.prod(taps) * shape[-2]) ** -0.5)
        return np.float32(last == "scale") + np.float32(0.1) * values

    shapes = jax.eval_shape(module.init, jax.random.key(0))
    return nest({name: draw(name, leaf.shape) for name, leaf in flatten(shapes).items()})


def abstract(config: Config, batch: int, dtype: str) -> tuple[Params, tuple]:
    """Shapes of the acting step's weights and of its other arguments."""
    par, vae = models(config)
    made = {"par": jax.eval_shape(par.init, jax.random.key(0)), "vae": jax.eval_shape(vae.init, jax.random.key(0))}
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), jax.eval_shape(prepared, made))
    text, pictures, executed, keys = jax.eval_shape(lambda: inputs(config, batch, dtype, jnp))
    cache = jax.eval_shape(PhysicalStep(config).start, params, text)
    return params, (cache, pictures, executed, keys)


def models(config: Config) -> tuple[Functional, Functional]:
    """PAR and its frame VAE, which decodes where frames are predicted."""
    decodes = config.model.predict_frames
    vae = Functional(lambda rngs: VAE(config.vae, decodes=decodes, rngs=rngs))
    return Functional(lambda rngs: PAR(config, rngs=rngs)), vae


def inputs(config: Config, batch: int, dtype: str, array: Any = np) -> tuple[Any, ...]:
    """Instruction, pictures, executed chunk and keys of a batch of robots."""
    m, text = config.model, config.text
    rng = np.random.default_rng(1)
    if text.kind == "words":
        words = rng.integers(0, text.vocabulary, (batch, text.tokens)).astype(np.int32)
    else:
        words = rng.standard_normal((batch, text.tokens, text.dim), np.float32).astype(dtype)
    pictures = rng.integers(0, 256, (batch, *config.picture.stitched, 3), np.uint8)
    executed = rng.standard_normal((batch, m.chunk, m.action_dim), np.float32)
    keys = jax.random.split(jax.random.key(2), batch)
    return array.asarray(words), array.asarray(pictures), array.asarray(executed), keys


class Subject:
    """The jitted step of `batch` robots, its parts, and one cache that goes from call to call.

    Args:
      config: as `par_jax.acting.acting` gives it.
      params: `{"par": ..., "vae": ...}`, float32.
      batch: robots.
      dtype: of weights, cache and computation.
    """

    def __init__(self, config: Config, params: Params, batch: int, dtype: str):
        self.config, self.batch, self.dtype = config, batch, dtype
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), prepared(params))
        par, vae = models(config)
        self.physical = PhysicalStep(config)
        self.text, self.pictures, self.executed, self.keys = jax.device_put(inputs(config, batch, dtype))
        shape = (batch, *config.latent_size, config.vae.latent_channels)
        self.latents = jnp.asarray(np.random.default_rng(4).standard_normal(shape, np.float32), dtype)

        def encode(params: Params, pictures: jax.Array) -> jax.Array:
            return vae.bind(params["vae"]).encode_frames(to_unit(pictures).astype(dtype))

        def transform(params: Params, cache: KVCache, latents: jax.Array, executed: jax.Array) -> tuple:
            return sampling.step(par.bind(params["par"]), cache, latents, executed)

        def decide(params: Params, z_a: jax.Array, ahead: Ahead, keys: jax.Array) -> jax.Array:
            return par.bind(params["par"]).action_head.sample(z_a, ahead, keys)

        self._encode, self._decide = jax.jit(encode), jax.jit(decide)
        self._transform = jax.jit(transform, donate_argnums=1)
        self.act = jax.jit(self.physical.act, donate_argnums=1)
        self._predict = jax.jit(self.physical.predict)
        self._start = jax.jit(self.physical.start)

    def start(self, time: int = 0) -> KVCache:
        """A cache at an episode's step `time`."""
        cache = self._start(self.params, self.text)
        count = jnp.full_like(cache.time, time)
        return dataclasses.replace(cache, time=count, slot=jnp.int32(time % self.config.model.context))

    def run(self, name: str, time: int = 0) -> Callable[[], Any]:
        """What calls one of `PARTS`, `WHOLE` or `FRAME` again and again; each call waits for none before it.

        Args:
          name: the whole step gives actions and look-ahead, the transformer Z_A.
          time: the episode's step that the first call makes.
        """
        if name == "frame encoding":
            return lambda: self._encode(self.params, self.pictures)
        if name == FRAME:
            cache, waiting, _ = self._transform(self.params, self.start(), self.latents, self.executed)
            return lambda: self._predict(self.params, cache, waiting, self.pictures, self.keys)
        if name == "action head":
            z_a, ahead = self.condition(), self.ahead()
            return lambda: self._decide(self.params, z_a, ahead, self.keys)
        cache = self.start(time)

        def whole() -> Any:
            nonlocal cache
            cache, *actions, _ = self.act(self.params, cache, self.pictures, self.executed, self.keys)
            return actions

        def transform() -> Any:
            nonlocal cache
            cache, _, z_a = self._transform(self.params, cache, self.latents, self.executed)
            return [z_a]

        return whole if name == WHOLE else transform

    def condition(self) -> jax.Array:
        """Z_A after an episode's first step."""
        return self._transform(self.params, self.start(), self.latents, self.executed)[2]

    def ahead(self) -> Ahead:
        """The look-ahead of an episode's second step: zeros."""
        m = self.config.model
        shape = (self.batch, (m.lookahead - 1) * m.chunk, m.action_dim)
        return Ahead(jnp.zeros(shape, jnp.float32), jnp.ones(self.batch, bool))

    def work(self, step_flops: dict[str, int]) -> dict[str, tuple[float, float]]:
        """Arithmetic, and bytes of weights and cache that are read, of each part and of the whole step."""
        par = self.params["par"]
        cache = jax.eval_shape(self._start, self.params, self.text)
        encoder = {name: tree for name, tree in self.params["vae"].items() if name in ("encoder", "quant_conv")}
        tokens = _bytes([par.get(name) for name in ("patch_embed", "action_tokenizer", "video_position")])
        made: dict[str, tuple[float, float]] = {
            "frame encoding": (step_flops["frame VAE"], _bytes(encoder) + self.pictures.nbytes),
            "transformer": (
                step_flops["tokenizers"] + step_flops["transformer"],
                tokens + _bytes(par.get("video_encoder")) + _bytes((cache.k, cache.v)),
            ),
            "action head": (step_flops["action head"], _bytes(par["action_head"])),
        }
        flops, read = (float(sum(column)) for column in zip(*made.values(), strict=True))
        return made | {WHOLE: (flops, read)}


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
