"""Presets and configuration: frozen dataclasses of plain values. Imports nothing local."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The frame VAE (OpenSora's causal 3D VAE, used by NOVA; here one latent a frame).

    Attributes mirror `vae/config.json` of a NOVA checkpoint, but for `patch`: squares of `patch` pixels a side become
    channels before the first convolution, and pixels again after the last. NOVA's is 1; a small VAE that is trained
    on a CPU spends its time at the full resolution otherwise.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (
        "DownEncoderBlock2D",
        "DownEncoderBlock2D",
        "DownEncoderBlock3D",
        "DownEncoderBlock3D",
    )
    up_block_types: tuple[str, ...] = ("UpDecoderBlock3D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    patch: int = 1
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def stride(self) -> int:
        """Pixels a latent, along height and along width."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The instruction's path to K_t tokens.

    Attributes:
      kind: "words" for word hashes and a learned table, "phi" for embeddings of a frozen Phi.
      tokens: K_t.
      dim: of an embedding.
      vocabulary: of the table.
    """

    kind: str = "words"
    tokens: int = 8
    dim: int = 64
    vocabulary: int = 1024


@dataclasses.dataclass(frozen=True)
class NovaConfig:
    """NOVA's transformer (arXiv 2412.14169), as `transformer/config.json` and the weights of a checkpoint say.

    Attributes:
      width, heads: of both transformers.
      video_depth, frame_depth: blocks of the video encoder and of the masked frame encoder.
      frame_head_width, frame_head_depth: of the per-token diffusion MLP.
      latent_channels: C of the VAE's latents.
      latent_size: rows and columns of a frame's latents.
      frame_patch: latents a side of one token in the frame encoder; the video encoder's are twice as wide.
      text_dim, text_tokens: width of the language model's embeddings, tokens of a prompt.
      video_base: frames, rows and columns for which the video encoder's positions were trained.
      frame_base: rows and columns for which the frame encoder's were.
      rotary: rotary positions instead of absolute ones.
      mixer_rank: of the adaptive layer norm over the first frame's outputs; 0 for full rank, None for none.
    """

    width: int
    heads: int
    video_depth: int
    frame_depth: int
    frame_head_width: int
    frame_head_depth: int
    latent_channels: int
    latent_size: tuple[int, int]
    frame_patch: int
    text_dim: int
    text_tokens: int
    video_base: tuple[int, int, int]
    frame_base: tuple[int, int]
    rotary: bool = False
    mixer_rank: int | None = None

    @property
    def video_patch(self) -> int:
        """Latents a side of one token in the video encoder."""
        return 2 * self.frame_patch

    @property
    def motion(self) -> bool:
        """Whether the model makes videos, told their motion and frame rate, and not only images."""
        return self.video_base[0] > 1


@dataclasses.dataclass(frozen=True)
class PhiConfig:
    """The text encoder, a Phi language model; attributes as in `text_encoder/config.json`."""

    vocab_size: int = 51200
    hidden_size: int = 2560
    intermediate_size: int = 10240
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.4
    rope_theta: float = 10000.0
    hidden_act: str = "gelu_new"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """PAR (arXiv 2508.09822, section 4.2): NOVA's two transformers, two de-tokenizers.

    Attributes:
      width, heads: of both transformers.
      video_depth, frame_depth: blocks of the causal video encoder and of the masked frame encoder.
      video_patch, frame_patch: latents a side of one token, in each of the two.
      chunk: L, actions a package.
      context: packages that a token may look back on, its own included (sliding window).
      max_time: training draws the time at which a sequence begins below this number of packages, so that a long
        episode holds nothing new.
      positions: of frame tokens in the video encoder: "absolute" or "rotary", as NOVA's checkpoints have them; "both"
        adds absolute rows and columns to rotary positions. Action tokens always have rotary ones.
      action_tokenizer_width: of the action tokenizer's hidden layer.
      action_rope_theta, rope_theta: base of the rotary frequencies of action tokens and of frame tokens.
      mask_ratio: least and greatest share of a frame's tokens that training hides (NOVA's 0.7 to 1).
      transformer: False decodes the embedded tokens themselves (PAR's ablation NoAR).
      predict_frames: False leaves out the frame encoder and its head, and with them the frame loss.
      predict_actions: False leaves out the action tokenizer and the action head: a model of videos.
      lookahead: chunks that are denoised together; the first is executed, the others condition the next step's
        prediction (PhysGen's L-MTP).
      see_actions: False puts begin-of-action tokens in the place of every executed chunk.
      relative_actions: True tells the arm's numbers of a chunk as differences from where it was last told to be (from
        where episodes begin, before it was told anything), the gripper's as they are: a look then has to say which
        way to go and how far, not where the arm is. For position targets; other control modes are relative already.
      one_scale: True scales the arm's numbers of a chunk alike, so that an error in one joint counts as much as the
        same error in another; else each by its own range. Relative actions always have one scale.
      action_head: "dit" for diffusion, "mlp" for regression, "bins" for a classification of quantised actions.
      bins: quanta of an action's range, for "bins".
    """

    width: int = 192
    heads: int = 3
    video_depth: int = 4
    frame_depth: int = 4
    video_patch: int = 2
    frame_patch: int = 2
    action_dim: int = 8
    chunk: int = 8
    context: int = 3
    max_time: int = 64
    positions: str = "both"
    action_tokenizer_width: int = 192
    rope_theta: float = 10000.0
    action_rope_theta: float = 100.0
    mask_ratio: tuple[float, float] = (0.7, 1.0)
    frame_head_width: int = 192
    frame_head_depth: int = 3
    action_head_width: int = 192
    action_head_depth: int = 2
    action_head_heads: int = 3
    transformer: bool = True
    predict_frames: bool = True
    predict_actions: bool = True
    lookahead: int = 1
    see_actions: bool = True
    relative_actions: bool = False
    one_scale: bool = False
    action_head: str = "dit"
    bins: int = 256


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule and sampling of both heads (paper section 3.2; 4 draws of t as in section 4.3).

    Attributes:
      schedule: of training: "flow" for flow matching, "ddpm" for Ho et al.'s.
      sampler: "flow", "ddpm" or "ddim"; None for the schedule's own.
      draws: times a target.
      action_shift, frame_shift: how far times are moved towards noise (`par_jax.diffusion.Flow`): a chunk's, and those
        of a frame's tokens.
      action_steps, frame_steps: denoising steps of a chunk, and of a set of a frame's tokens.
      frame_sets: sets of a frame.
    """

    schedule: str = "flow"
    sampler: str | None = None
    draws: int = 4
    action_shift: float = 1.0
    frame_shift: float = 1.0
    action_steps: int = 4
    frame_steps: int = 2
    frame_sets: int = 6

    @property
    def chosen(self) -> str:
        """The sampler's name."""
        return self.sampler or self.schedule


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Pixels: what a camera gives and the crop of it that the model sees (height, width).

    Attributes:
      cameras: names in `par_jax.tasks.CAMERAS`; their crops are stitched from left to right into one picture.
      size: of a camera's picture.
      crop: of what the model sees of it.
      offset: how far the crop's centre lies below and right of the picture's.
      shift: most by which training moves the crop, either way.
    """

    cameras: tuple[str, ...] = ("render",)
    size: tuple[int, int] = (128, 128)
    crop: tuple[int, int] = (96, 96)
    offset: tuple[int, int] = (0, 0)
    shift: int = 2

    @property
    def stitched(self) -> tuple[int, int]:
        """Height and width of what the model sees of all cameras."""
        return self.crop[0], self.crop[1] * len(self.cameras)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): W x becomes W x + (alpha / rank) B A x, and W is frozen.

    Attributes:
      rank: 0 for none.
      alpha: see above.
      targets: regular expression, searched in a linear layer's name, its parts joined with `/`.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = r"^(video_encoder|frame_encoder)/.*(qkv|proj|fc1|fc2)$"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage of training: AdamW or Muon, linear warm-up, cosine decay, clipping by global norm, EMA.

    Attributes:
      optimizer: "adamw", or "muon" for the kernels of transformer blocks, with AdamW for what remains.
      batch: sequences a step (policy) or pictures a step (VAE).
      packages: packages of a training sequence (policy only).
      history_dropout: share of sequences whose packages see nothing of the past.
      action_dropout: share of sequences whose packages see of the past its frames alone.
      action_noise: deviation of what is added to the executed actions that are read, in their scaled units.
      frame_share: share of a batch's frames on which the frame loss is estimated.
      start_share: share of sequences that begin at their episode's first frame, as rollouts do (policy only).
      dtype: of the computation; parameters stay float32.
      remat: what the backward pass computes again instead of keeping it: "none"; "full", whole transformer blocks;
        "dots", all of a block but its matrix products.
      accumulate: parts into which a batch is cut; their gradients are averaged, so that memory follows a part's size.
    """

    steps: int
    batch: int
    optimizer: str = "adamw"
    learning_rate: float = 8e-4
    warmup: int = 100
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.995
    packages: int = 4
    history_dropout: float = 0.3
    action_dropout: float = 0.0
    action_noise: float = 0.0
    frame_share: float = 0.2
    start_share: float = 0.25
    dtype: str = "float32"
    remat: str = "none"
    accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run's results depend on besides its data and its seed.

    `pretrained`: whether the transformer begins with pretrained weights where `--init` brings some.
    """

    name: str
    picture: PictureConfig
    vae: VAEConfig
    text: TextConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    vae_train: TrainConfig
    lora: LoRAConfig = LoRAConfig()
    pretrained: bool = True

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a frame's latents."""
        height, width = self.picture.stitched
        return height // self.vae.stride, width // self.vae.stride

    @property
    def frame_tokens(self) -> int:
        """K_o: tokens of one frame in the video encoder."""
        height, width = self.latent_size
        return (height // self.model.video_patch) * (width // self.model.video_patch)


TINY = Config(
    name="tiny",
    picture=PictureConfig(offset=(10, 0)),
    vae=VAEConfig(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock3D"),
        up_block_types=("UpDecoderBlock3D",) * 2,
        block_out_channels=(64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        patch=4,
    ),
    text=TextConfig(),
    model=ModelConfig(),
    diffusion=DiffusionConfig(),
    train=TrainConfig(steps=1300, batch=16),
    vae_train=TrainConfig(steps=800, batch=8, learning_rate=2e-3, weight_decay=0.0, ema=0.98, warmup=50),
)

# `tiny`'s model with what makes it learn grasping (docs/recipe.md): a second camera, whose pictures lie still; Muon,
# and denoising times moved towards noise; one scale for all joints; a past that is mostly hidden, so that it looks.
SMALL = dataclasses.replace(
    TINY,
    name="small",
    picture=PictureConfig(cameras=("render", "base"), offset=(10, 0), shift=0),
    model=ModelConfig(context=4, one_scale=True),
    diffusion=DiffusionConfig(action_shift=4.0),
    train=TrainConfig(
        steps=5000,
        batch=64,
        optimizer="muon",
        learning_rate=2e-3,
        action_dropout=0.7,
        action_noise=0.1,
        frame_share=0.1,
    ),
    vae_train=dataclasses.replace(TINY.vae_train, steps=1000),
)

# The paper's model: NOVA's `nova-d48w1024-osp480` and 22M parameters for actions (paper table 1).
PAR = Config(
    name="par",
    picture=PictureConfig(size=(496, 784), crop=(480, 768), shift=8),
    vae=VAEConfig(),
    text=TextConfig(kind="phi", tokens=256, dim=2560),
    model=ModelConfig(
        width=1024,
        heads=16,
        video_depth=16,
        frame_depth=32,
        video_patch=4,
        frame_patch=2,
        context=5,
        positions="absolute",
        action_tokenizer_width=560,
        frame_head_width=1280,
        frame_head_depth=3,
        action_head_width=512,
        action_head_depth=3,
        action_head_heads=8,
    ),
    diffusion=DiffusionConfig(action_steps=10, frame_steps=25, frame_sets=64),
    train=TrainConfig(
        steps=20000,
        batch=8,
        learning_rate=1e-4,
        warmup=500,
        packages=5,
        ema=0.999,
        dtype="bfloat16",
        remat="full",
    ),
    vae_train=TrainConfig(steps=0, batch=8),
)

# PAR's successor (arXiv 2603.00110): two cameras side by side, look-ahead, and adapters instead of whole weights.
PHYSGEN = dataclasses.replace(
    PAR,
    name="physgen",
    picture=PictureConfig(cameras=("render", "hand"), size=(496, 400), crop=(480, 384), shift=8),
    model=dataclasses.replace(PAR.model, lookahead=3),
    lora=LoRAConfig(rank=32, alpha=32.0),
)

PRESETS: dict[str, Config] = {"tiny": TINY, "small": SMALL, "par": PAR, "physgen": PHYSGEN}


def to_dict(config: Any) -> dict:
    """A configuration dataclass as JSON-able nested dicts."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """The inverse of `to_dict`, also after JSON turned tuples into lists.

    Raises:
      TypeError: a key is missing or unknown.
    """
    parts = {field.name: field.type for field in dataclasses.fields(Config)}
    made = {}
    for key, value in values.items():
        part = parts.get(key)
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            value = part(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
        made[key] = value
    return Config(**made)


def differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Names of the leaves in which two nested dicts differ, each with both values: `model.width: 192 != 256`."""
    out = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            out += differences(left, right, f"{prefix}{key}.")
        elif (list(left) if isinstance(left, tuple) else left) != (list(right) if isinstance(right, tuple) else right):
            out.append(f"{prefix}{key}: {left} != {right}")
    return out
