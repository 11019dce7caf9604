"""PAR: tokenizers, the causal transformer, the frame encoder and the two heads in one module."""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax import lora
from par_jax.config import Config
from par_jax.model.action_head import ActionDiT
from par_jax.model.discriminative import Bins, Regression
from par_jax.model.embedded import Embedded
from par_jax.model.frame_encoder import FrameEncoder
from par_jax.model.frame_head import FrameHead
from par_jax.model.text import TextEmbed, TextProjector
from par_jax.model.video_encoder import VideoEncoder
from par_jax.nn.layers import Linear, Projector, TimePosition, patchify
from par_jax.nn.positions import sincos_2d


class ActionTokenizer(nnx.Module):
    """Actions to tokens by an MLP, one each; begin-of-action tokens stand for a chunk that was never executed."""

    def __init__(self, action_dim: int, chunk: int, hidden: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.proj = Projector(action_dim, width, hidden, rngs=rngs)
        self.position = nnx.Param(init(rngs.params(), (chunk, width)))
        self.begin = nnx.Param(init(rngs.params(), (chunk, width)))

    def __call__(self, actions: jax.Array, known: jax.Array) -> jax.Array:
        """actions [..., L, A], known [...] bool (False: begin-of-action) -> [..., L, E]."""
        tokens = self.proj(actions) + self.position[...].astype(actions.dtype)
        return jnp.where(known[..., None, None], tokens, self.begin[...].astype(actions.dtype))


def make_action_head(config: Config, rngs: nnx.Rngs) -> ActionDiT | Regression | Bins:
    """The action de-tokenizer that a configuration names."""
    if config.model.action_head == "mlp":
        return Regression(config.model, rngs=rngs)
    if config.model.action_head == "bins":
        return Bins(config.model, rngs=rngs)
    return ActionDiT(config.model, config.diffusion, rngs=rngs)


class PAR(nnx.Module):
    """The physical autoregressive model (paper fig. 2). The frame VAE stands apart, frozen."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        m, remat = config.model, config.train.remat
        self.config = config
        height, width = config.latent_size
        grid = (height // m.video_patch, width // m.video_patch)
        frame_grid = (height // m.frame_patch, width // m.frame_patch)
        token_dim = m.frame_patch**2 * config.vae.latent_channels
        self.text_embed = (
            TextEmbed(config.text, m.width, rngs=rngs)
            if config.text.kind == "words"
            else TextProjector(config.text.dim, m.width, rngs=rngs)
        )
        self.patch_embed = Linear(m.video_patch**2 * config.vae.latent_channels, m.width, rngs=rngs)
        self.video_position = TimePosition(m.width, rngs=rngs) if m.positions == "absolute" else None
        if m.predict_actions:
            hidden = m.action_tokenizer_width
            self.action_tokenizer = ActionTokenizer(m.action_dim, m.chunk, hidden, m.width, rngs=rngs)
        self.video_encoder: VideoEncoder | Embedded
        if m.transformer:
            self.video_encoder = VideoEncoder(m, grid, config.text.tokens, remat, rngs=rngs)
        else:
            self.video_encoder = Embedded(m, grid, config.text.tokens)
        if m.predict_frames:
            rotary = m.positions == "rotary"
            self.frame_encoder = FrameEncoder(
                frame_grid, token_dim, m.width, m.heads, m.frame_depth, rotary, remat, rngs=rngs
            )
            self.frame_head = FrameHead(token_dim, m.width, m.frame_head_width, m.frame_head_depth, remat, rngs=rngs)
        if m.predict_actions:
            self.action_head = make_action_head(config, rngs)
        lora.attach(self, config.lora, rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the parameters, and so of the computation."""
        return self.patch_embed.kernel[...].dtype

    def base(self, executed: jax.Array, known: jax.Array) -> jax.Array:
        """What the next chunk's actions are told from: the last executed action's numbers of the arm.

        Zeros, which are where episodes begin, where nothing was executed; for the gripper, which is told as it is; and
        for models of absolute actions.

        Args:
          executed: [..., L, A] float32, scaled, the chunk that led to the frame.
          known: [...] bool, False where there was none.

        Returns:
          [..., 1, A] float32.
        """
        last = executed[..., -1:, :]
        if not self.config.model.relative_actions:
            return jnp.zeros_like(last)
        arm = jnp.arange(last.shape[-1]) < last.shape[-1] - 1
        return jnp.where(known[..., None, None] & arm, last, 0)

    def physical_tokens(self, latents: jax.Array, actions: jax.Array, known: jax.Array, time: jax.Array) -> jax.Array:
        """Frames and chunks to packages (paper section 4.2.1).

        Args:
          latents: [..., h, w, C].
          actions: [..., L, A] float32, the chunk that led to the frame.
          known: [...] bool, False where there was none.
          time: [...] float32, the packages' places in the episode.

        Returns:
          [..., K_package, E].
        """
        m = self.config.model
        if m.context == 1 or not m.see_actions:  # a package that stands alone is as an episode's first
            known = jnp.zeros_like(known)
        frame = self.patch_embed(patchify(latents, m.video_patch))
        if m.positions != "rotary":
            frame = frame + jnp.asarray(sincos_2d(*self.video_encoder.grid, frame.shape[-1]), frame.dtype)
        if self.video_position is not None:
            # NOVA's time 0 is that of its begin-of-video frame.
            frame = frame + self.video_position(time + 1, frame.dtype)[..., None, :]
        if m.predict_actions:
            actions = actions - self.base(actions, jnp.ones_like(known))
            action = self.action_tokenizer(actions.astype(frame.dtype), known)
        else:
            action = jnp.zeros((*frame.shape[:-2], m.chunk, m.width), frame.dtype)
        return jnp.concatenate([frame, action], axis=-2)

    def split(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A package's outputs to Z_O [..., K_o, E] and Z_A [..., K, E]; K = L, or more without a transformer."""
        frame = self.video_encoder.frame_tokens
        return z[..., :frame, :], z[..., frame:, :]

    def encode(
        self,
        latents: jax.Array,
        actions: jax.Array,
        known: jax.Array,
        text: jax.Array,
        time: jax.Array,
        alone: jax.Array | None = None,
        silent: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """All packages in one pass.

        Args:
          latents: [B, N, h, w, C], O_0 .. O_{N-1}.
          actions: [B, N, L, A] float32, A_0 .. A_{N-1}.
          known: [B, N] bool, which of the chunks are given as tokens.
          text: [B, K_text] int32 word ids, or [B, K_text, dim] embeddings.
          time: [B, N] float32.
          alone: [B] bool, sequences without history.
          silent: [B] bool, videos without actions: no frame token sees an action token. A model of videos has no
            others.

        Returns:
          Z_O [B, N, K_o, E] and Z_A [B, N, K, E], which condition O_1 .. O_N and the chunks from A_1 .. A_N on.
        """
        if not self.config.model.predict_actions:
            silent = jnp.ones(latents.shape[:1], bool)
        packages = self.physical_tokens(latents, actions, known, time)
        return self.split(self.video_encoder(self.text_embed(text), packages, time, alone, silent))
