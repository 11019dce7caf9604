"""Floating-point operations of a configuration's parts.

A multiplication with an addition counts as two. Softmax, norms, activations and adapters are left out: they are a few
in a hundred of the arithmetic. So is what rematerialisation computes twice.
"""

from par_jax.config import Config
from par_jax.sets import set_sizes


class Arithmetic:
    """Counts for one configuration.

    Attributes:
      text, frame, package, fine: tokens of the instruction, of a frame, of a package, and of a frame in the frame
        encoder.
    """

    def __init__(self, config: Config):
        m = config.model
        height, width = config.latent_size
        self.config, self.model = config, m
        self.text, self.frame = config.text.tokens, config.frame_tokens
        self.package = self.frame + m.chunk
        self.fine = (height // m.frame_patch) * (width // m.frame_patch)
        self.token_dim = m.frame_patch**2 * config.vae.latent_channels
        self.depth = m.video_depth if m.transformer else 0
        self.frame_depth = m.frame_depth if m.predict_frames else 0

    def linear(self, depth: int, rows: int) -> int:
        """A transformer's linear layers on `rows` tokens."""
        return 24 * depth * rows * self.model.width**2

    def final(self, rows: int) -> int:
        """The video encoder's last layer in a step on `rows` tokens, behind their queries, keys and values."""
        window = self.text + self.model.context * self.package
        return (18 * self.model.width**2 + 4 * window * self.model.width) * rows if self.depth else 0

    def attention(self, depth: int, rows: int, seen: int) -> int:
        """A transformer's attention of `rows` tokens to `seen`."""
        return 4 * depth * rows * seen * self.model.width

    def action_head(self, conditions: int, passes: int) -> int:
        """What a condition's keys and values cost comes once, the denoiser in every pass."""
        m = self.model
        w, length = m.action_head_width, m.lookahead * m.chunk
        seen = (m.chunk if m.transformer else self.text + self.frame + m.chunk) + length - m.chunk
        if m.action_head != "dit":
            numbers = m.lookahead * m.action_dim * (m.bins if m.action_head == "bins" else 1)
            return conditions * 2 * m.chunk * (m.width * w + 8 * m.action_head_depth * w**2 + w * numbers)
        once = 2 * seen * (m.width * w + 2 * m.action_head_depth * w**2)
        block = 2 * (14 * length * w**2 + 9 * w**2) + 4 * length * (length + seen) * w
        return conditions * (once + passes * (m.action_head_depth * block + 4 * length * m.action_dim * w))

    def frame_head(self, rows: int) -> int:
        """The diffusion MLP, once, on `rows` tokens."""
        m = self.model
        w = m.frame_head_width
        return 2 * rows * (m.frame_head_depth * 5 * w**2 + 4 * w**2 + m.width * w + 2 * self.token_dim * w)

    def step(self, batch: int) -> dict[str, int]:
        """An acting step of `batch` robots behind the frame VAE, by part."""
        m = self.model
        inside = max(m.video_patch**2 * self.config.vae.latent_channels, m.action_tokenizer_width)
        window = self.text + m.context * self.package
        transformer = self.linear(self.depth, self.package) + self.attention(self.depth, self.package, window)
        transformer -= self.final(self.frame)
        return {
            "tokenizers": batch * 2 * self.package * m.width * inside,
            "transformer": batch * transformer,
            "action head": self.action_head(batch, self.config.diffusion.action_steps),
        }

    def next_frame(self) -> int:
        """Predicting one robot's next frame, set by set."""
        if not self.model.predict_frames:
            return 0
        known, total = 0, self.final(self.frame)
        for size in set_sizes(self.fine, self.config.diffusion.frame_sets):
            total += sum(self.frame_encoder(self.frame + known))
            total += self.config.diffusion.frame_steps * self.frame_head(size)
            known += size
        return total

    def frame_encoder(self, visible: int) -> tuple[int, int]:
        """One pass over one frame, `visible` of its and its condition's tokens in the first half: linear, attention."""
        first, whole = self.frame_depth // 2, self.frame + self.fine
        rest = self.frame_depth - first
        return (
            self.linear(first, visible) + self.linear(rest, whole),
            self.attention(first, visible, visible) + self.attention(rest, whole, whole),
        )

    def training(self) -> int:
        """One training step, forward and backward. Frozen layers pass gradients on and get none."""
        m, d, t = self.model, self.config.diffusion, self.config.train
        sequence = self.text + t.packages * self.package
        pictures = max(1, round(t.frame_share * t.batch * t.packages)) if m.predict_frames else 0
        # Training shows 3 in 20 of a frame's tokens on average, as NOVA does.
        linear, attention = self.frame_encoder(self.frame + round(0.15 * self.fine))
        backbone = t.batch * self.linear(self.depth, sequence) + pictures * linear
        other = (
            t.batch * self.attention(self.depth, sequence, sequence)
            + pictures * (attention + d.draws * self.frame_head(self.fine))
            + self.action_head(t.batch * t.packages, d.draws)
        )
        return (2 if self.config.lora.rank else 3) * backbone + 3 * other
