"""Action heads without diffusion, of the papers' ablations: one answer, by regression or by classification."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import ModelConfig
from par_jax.nn.layers import MLP, LayerNorm
from par_jax.nn.stack import Stack
from par_jax.types import Ahead


class Trunk(nnx.Module):
    """Residual MLPs on each of Z_A's L tokens; a token gives one action of each of the M chunks."""

    def __init__(self, config: ModelConfig, numbers: int, *, rngs: nnx.Rngs):
        width = config.action_head_width
        self.chunks, self.length = config.lookahead, config.chunk
        self.embed = nnx.Linear(config.width, width, rngs=rngs)
        self.stack = Stack(lambda r: MLP(width, rngs=r), config.action_head_depth, rngs=rngs)
        self.norm = LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, self.chunks * numbers, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """[R, K >= L, cond_dim], of which the last L count -> [R, M * L, numbers]."""
        x = self.embed(z[:, -self.length :])
        x, _ = self.stack.scan(lambda block, x, _: (x + block(x), None), x)
        x = self.head(self.norm(x)).reshape(*x.shape[:2], self.chunks, -1)
        return jnp.moveaxis(x, 2, 1).reshape(x.shape[0], self.chunks * self.length, -1)


class Regression(nnx.Module):
    """The actions themselves, by mean squared error (PAR's ablation Discrete: a discriminative de-tokenizer)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.trunk = Trunk(config, config.action_dim, rngs=rngs)

    def errors(self, actions: jax.Array, z: jax.Array, ahead: Ahead, key: jax.Array) -> jax.Array:
        """[R, S, A] targets -> [R, S] float32; the look-ahead and the key are not used."""
        wrong = self.trunk(z).astype(jnp.float32) - actions.astype(jnp.float32)
        return jnp.mean(wrong**2, axis=-1)

    def sample(self, z: jax.Array, ahead: Ahead, keys: jax.Array, steps: int | None = None) -> jax.Array:
        """Z_A [R, K, cond_dim] -> [R, S, A]; the look-ahead, the keys and the steps are not used."""
        return self.trunk(z)


class Bins(nnx.Module):
    """Each number of an action as one of `bins` equal parts of [-1, 1], by cross-entropy (PhysGen's Discrete)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.bins = config.bins
        self.trunk = Trunk(config, config.action_dim * config.bins, rngs=rngs)

    def logits(self, z: jax.Array) -> jax.Array:
        """Z_A [R, K, cond_dim] -> [R, S, A, bins] float32."""
        x = self.trunk(z)
        return x.reshape(*x.shape[:2], -1, self.bins).astype(jnp.float32)

    def errors(self, actions: jax.Array, z: jax.Array, ahead: Ahead, key: jax.Array) -> jax.Array:
        """[R, S, A] targets -> [R, S] float32, in nats; the look-ahead and the key are not used."""
        place = jnp.floor((actions.astype(jnp.float32) + 1) / 2 * self.bins)
        target = jnp.clip(place, 0, self.bins - 1).astype(jnp.int32)
        logs = jax.nn.log_softmax(self.logits(z), axis=-1)
        return -jnp.mean(jnp.take_along_axis(logs, target[..., None], axis=-1)[..., 0], axis=-1)

    def sample(self, z: jax.Array, ahead: Ahead, keys: jax.Array, steps: int | None = None) -> jax.Array:
        """The likeliest part's centre: Z_A [R, K, cond_dim] -> [R, S, A]; the other arguments are not used."""
        best = jnp.argmax(self.logits(z), axis=-1).astype(jnp.float32)
        return ((best + 0.5) / self.bins * 2 - 1).astype(z.dtype)
