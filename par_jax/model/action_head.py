"""Action-DiT: the diffusion head that turns Z_A into actions (paper section 4.2.3, fig. 2 right)."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.config import DiffusionConfig, ModelConfig
from par_jax.diffusion import schedule_of
from par_jax.nn.attention import Attention, attend
from par_jax.nn.layers import MLP, Linear, TimeEmbed, modulate
from par_jax.nn.stack import Stack
from par_jax.types import Ahead


class ActionBlock(nnx.Module):
    """A DiT block: self-attention among the actions, cross-attention to the conditions, MLP.

    The time embedding modulates each branch (adaLN); zero gates make the block start as the identity.
    """

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.modulation = Linear(dim, 9 * dim, kernel_init=zeros, rngs=rngs)
        self.attn = Attention(dim, heads, rngs=rngs)
        self.cross_q = Linear(dim, dim, rngs=rngs)
        self.cross_kv = Linear(dim, 2 * dim, rngs=rngs)
        self.cross_proj = Linear(dim, dim, rngs=rngs)
        self.mlp = MLP(dim, rngs=rngs)
        self.heads = heads

    def keys_values(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Conditions [R, K, E] to what the cross-attention sees: [R, K, H, D] each."""
        kv = self.cross_kv(z).reshape(*z.shape[:-1], 2, self.heads, -1)
        return kv[..., 0, :, :], kv[..., 1, :, :]

    def __call__(self, x: jax.Array, modulation: jax.Array, kv: tuple[jax.Array, jax.Array]) -> jax.Array:
        """x [R, S, E], modulation [R or 1, 1, 9 * E], kv as `keys_values` gives them -> [R, S, E]."""
        s = jnp.split(modulation, 9, axis=-1)
        x = x + s[2] * self.attn.merge(attend(*self.attn.project(modulate(x, s[0], s[1]))))
        q = self.cross_q(modulate(x, s[3], s[4])).reshape(*x.shape[:-1], self.heads, -1)
        x = x + s[5] * self.cross_proj(attend(q, *kv).reshape(x.shape))
        return x + s[8] * self.mlp(modulate(x, s[6], s[7]))


class ActionDiT(nnx.Module):
    """Denoises the S = M * L actions of M chunks together.

    It cross-attends to Z_A and, where M > 1, to the look-ahead: what the step before expected of these chunks
    (PhysGen's L-MTP). The look-ahead takes no room in the transformer's sequence, whose length is the paper's.
    """

    def __init__(self, config: ModelConfig, diffusion: DiffusionConfig, *, rngs: nnx.Rngs):
        zeros, small = nnx.initializers.zeros, nnx.initializers.normal(0.02)
        width, actions = config.action_head_width, config.lookahead * config.chunk
        self.diffusion, self.shape = diffusion, (actions, config.action_dim)
        self.embed = Linear(config.action_dim, width, rngs=rngs)
        self.position = nnx.Param(small(rngs.params(), (actions, width)))
        self.time_embed = TimeEmbed(width, rngs=rngs)
        self.condition_proj = Linear(config.width, width, rngs=rngs)
        blocks = config.action_head_depth
        self.stack = Stack(lambda r: ActionBlock(width, config.action_head_heads, rngs=r), blocks, rngs=rngs)
        self.modulation = Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.head = Linear(width, config.action_dim, kernel_init=zeros, rngs=rngs)
        self.looks_ahead = config.lookahead > 1
        if self.looks_ahead:
            ahead = (actions - config.chunk, width)
            self.ahead_embed = Linear(config.action_dim, width, rngs=rngs)
            self.ahead_position = nnx.Param(small(rngs.params(), ahead))
            self.ahead_unknown = nnx.Param(small(rngs.params(), ahead))

    def condition(self, z: jax.Array, ahead: Ahead) -> tuple[jax.Array, jax.Array]:
        """What all denoising steps share: keys and values of each block, [Y, R, K, H, D].

        Args:
          z: [R, K, cond_dim] conditions Z_A.
          ahead: of R robots.
        """
        c = self.condition_proj(z)
        if self.looks_ahead:
            tokens = self.ahead_embed(ahead.actions.astype(z.dtype)) + self.ahead_position[...].astype(z.dtype)
            unknown = self.ahead_unknown[...].astype(z.dtype)
            c = jnp.concatenate([c, jnp.where(ahead.known[:, None, None], tokens, unknown)], axis=1)
        return self.stack.scan(lambda block, _, __: (None, block.keys_values(c)), None)[1]

    def modulations(self, t: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """What times do to the denoiser, of no action's concern: t [T] float32 in 0 .. 1000 -> [Y, T, 1, 9 * E] and
        [T, 1, 2 * E], for the blocks and for what follows them.
        """
        t = jax.nn.silu(self.time_embed(t, dtype)[:, None, :])
        return self.stack.scan(lambda block, _, __: (None, block.modulation(t)), None)[1], self.modulation(t)

    def __call__(
        self, x: jax.Array, modulations: tuple[jax.Array, jax.Array], condition: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Predicts the diffusion target.

        Args:
          x: [R, S, A] noisy actions.
          modulations: of R times or of 1.
          condition: as `condition` gives it.

        Returns:
          [R, S, A].
        """
        blocks, last = modulations
        x = self.embed(x) + self.position[...].astype(x.dtype)
        x, _ = self.stack.scan(lambda block, x, given: (block(x, *given), None), x, (blocks, condition))
        scale, shift = jnp.split(last, 2, axis=-1)
        return self.head(modulate(x, scale, shift))

    def errors(self, actions: jax.Array, z: jax.Array, ahead: Ahead, key: jax.Array) -> jax.Array:
        """The diffusion loss, with `draws` times each (paper section 4.3): [R, S, A] targets -> [R, S] float32."""
        schedule = schedule_of(self.diffusion.schedule, self.diffusion.action_shift)
        condition = self.condition(z, ahead)

        def one(key: jax.Array) -> jax.Array:
            t_key, noise_key = jax.random.split(key)
            t = schedule.draw(t_key, actions.shape[:1])
            noise = jax.random.normal(noise_key, actions.shape, actions.dtype)
            modulations = self.modulations(schedule.timestep(t), actions.dtype)
            out = self(schedule.noised(actions, noise, t), modulations, condition)
            wrong = out.astype(jnp.float32) - schedule.target(actions, noise).astype(jnp.float32)
            return jnp.mean(wrong**2, axis=-1)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, self.diffusion.draws)), axis=0)

    def sample(self, z: jax.Array, ahead: Ahead, keys: jax.Array, steps: int | None = None) -> jax.Array:
        """Draws actions: Z_A [R, K, cond_dim] -> [R, S, A].

        Args:
          keys: [R], one a robot, so that what a robot does depends on its own key alone.
          steps: of denoising; the configuration's by default.
        """
        schedule = schedule_of(self.diffusion.chosen, self.diffusion.action_shift)
        chain = schedule.chain(steps or self.diffusion.action_steps)
        # The chain's start, and each step's noise; samplers without noise of their own leave the rest undrawn.
        count = 1 + len(chain) * bool(chain.spread.any())
        noise = jax.vmap(lambda key: jax.random.normal(key, (count, *self.shape)), out_axes=1)(keys)
        condition = self.condition(z, ahead)
        # All times at once: their weights, a third of the head's, are then read once and not in every step.
        blocks, last = self.modulations(jnp.asarray(chain.timesteps), z.dtype)

        def denoise(x: jax.Array, modulations: tuple[jax.Array, jax.Array]) -> jax.Array:
            return self(x.astype(z.dtype), modulations, condition).astype(jnp.float32)

        # The chain's own sums are float32 whatever the denoiser computes in.
        told = jnp.moveaxis(blocks, 1, 0)[:, :, None], last[:, None]
        return chain.run(denoise, noise[0], noise[1:], told).astype(z.dtype)
