"""Images and videos from a converted NOVA checkpoint.

    python -m experiments.generate --checkpoint=ckpt/nova --prompt="an arm pushes a cube" --frames=9 --out=video.mp4

Text to image (`--out=picture.png`), text to video (`--out=video.mp4`), and image to video (`--image=first.png`).
The same seed gives the same pictures.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from experiments import app, devices
from par_jax import pretrained, video
from par_jax.config import VAEConfig
from par_jax.errors import UserError
from par_jax.generation import Draws, Generator, Plan
from par_jax.guidance import Guidance
from par_jax.language import embed_prompts
from par_jax.model.nova import MOTION_FLOW, MOTION_FPS
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional, Params
from par_jax.schedulers import make_scheduler

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A checkpoint made by convert/nova_to_flax.py.", required=True)
    flags.DEFINE_string("prompt", None, "What to show.", required=True)
    flags.DEFINE_string("negative_prompt", "", "What not to show.")
    flags.DEFINE_string("out", None, "A .png for one picture, a .mp4 for a clip.", required=True)
    flags.DEFINE_integer(
        "frames", None, "Latent frames; all but the first make four pictures. By default as many as in training."
    )
    flags.DEFINE_string("image", None, "A picture to begin the clip with; cut to the model's shape.")
    flags.DEFINE_integer("sets", 64, "Autoregressive steps a frame.", lower_bound=1)
    flags.DEFINE_integer("steps", 25, "Denoising steps a set.", lower_bound=1)
    flags.DEFINE_float("guidance", 5.0, "Weight of the prompt; 1 for none (half the time).")
    flags.DEFINE_float("min_guidance", None, "Let the weight grow from this one over a frame's sets.")
    flags.DEFINE_float("guidance_truncation", 0.0, "No guidance at timesteps (0 .. 1000) below this one.")
    flags.DEFINE_float("guidance_renormalisation", 1.0, "Shorten guided predictions, to this factor at least.")
    flags.DEFINE_float("image_guidance", 0.0, "Weight of the past frames; half as long again.")
    flags.DEFINE_float("shift", None, "Flow matching's shift of time towards noise; the checkpoint's by default.")
    flags.DEFINE_float("motion", MOTION_FLOW, "How much a clip moves.")
    flags.DEFINE_integer("fps", int(MOTION_FPS), "Frames a second, told to the model and written to the clip.")
    flags.DEFINE_integer("seed", 0, "Of every draw.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the computation; the checkpoint's by default.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if it exists.")
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu.")


def main() -> None:
    """The command."""
    devices.choose(FLAGS.device)
    out, folder = Path(FLAGS.out), Path(FLAGS.checkpoint)
    architecture = pretrained.read_config(folder)
    config = architecture.nova
    frames = _frames(out, config.motion, config.video_base[0])
    guidance = Guidance(
        FLAGS.guidance,
        FLAGS.min_guidance,
        FLAGS.guidance_truncation,
        FLAGS.guidance_renormalisation,
        FLAGS.image_guidance,
    )
    plan = Plan.of(config, frames, FLAGS.sets, FLAGS.steps, guidance)
    scheduler = make_scheduler(architecture.scheduler, FLAGS.shift)
    generator = Generator(config, scheduler, plan)
    first = _read_image(Path(FLAGS.image), config.latent_size, architecture.vae.stride) if FLAGS.image else None

    params = _load(folder, "transformer")
    dtype = params["begin"].dtype
    order_key, image_key = jax.random.split(jax.random.key(FLAGS.seed))
    prompts = [FLAGS.prompt, FLAGS.negative_prompt][: min(guidance.passes, 2)]
    embeddings = embed_prompts(folder, params["text_embed"]["position"], prompts, FLAGS.dtype)
    if guidance.passes > 1:
        embeddings = guidance.expand_text(*jnp.split(embeddings, 2))
    text = generator.text(params, embeddings, *generator.motion(1, FLAGS.motion, FLAGS.fps))

    vae_params = _load(folder, "vae")
    vae = Functional(lambda rngs: VAE(architecture.vae, rngs=rngs))
    given = None if first is None else _encode(vae, architecture.vae, vae_params, first.astype(dtype), image_key)
    draws = Draws.from_key(order_key, 1, generator.tokens, generator.token_dim, dtype)
    sets = len(plan.sizes) * (frames - (given is not None))
    with tqdm(total=sets, unit="set", desc=f"{frames} latent frame{'s' * (frames > 1)}") as bar:
        latents = jnp.stack(list(generator.run(params, text, draws, given, bar.update)), axis=1)
    del params
    pictures = _decode(vae, vae_params, latents)
    if not np.isfinite(pictures).all():
        raise UserError(f"{folder} makes pictures that are not numbers: try --dtype=float32, or convert it again")
    pictures = np.clip(pictures * 127.5 + 127.5, 0, 255).astype(np.uint8)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        video.write_png(out, pictures[0])
    else:
        video.write_mp4(out, iter(pictures), FLAGS.fps)
    print(f"{out}: {len(pictures)} picture{'s' * (len(pictures) > 1)} of {pictures.shape[2]} x {pictures.shape[1]}")


def _frames(out: Path, videos: bool, trained: int) -> int:
    """Latent frames to make, checked against the file's kind and the model."""
    if out.suffix not in (".png", ".mp4"):
        raise UserError(f"--out={out}: give a name that ends with .png (one picture) or .mp4 (a clip)")
    if out.exists() and not FLAGS.overwrite:
        raise UserError(f"{out} exists: give --overwrite or another --out")
    frames = FLAGS.frames if FLAGS.frames is not None else 1 if out.suffix == ".png" else trained
    if frames < 1:
        raise UserError(f"--frames={frames}: give 1 or more")
    if frames > 1 and not videos:
        raise UserError(f"--frames={frames}: this checkpoint makes single images; give --out=....png")
    if frames > 1 and out.suffix == ".png":
        raise UserError(f"{frames} frames do not fit into a picture: give --out=....mp4, or --frames=1")
    if FLAGS.image and frames == 1:
        raise UserError("--image begins a clip: give --out=....mp4 and --frames of 2 or more")
    return frames


def _load(folder: Path, component: str) -> Params:
    params = pretrained.load(folder, component)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, FLAGS.dtype or leaf.dtype), params)


def _read_image(path: Path, latent_size: tuple[int, int], stride: int) -> jax.Array:
    """A picture file, scaled and cut at its centre: [1, H, W, 3] float32 in -1 .. 1."""
    height, width = (size * stride for size in latent_size)
    try:
        picture = Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"--image={path} cannot be read as a picture ({error})") from error
    scale = max(height / picture.height, width / picture.width)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cut = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32)
    return jnp.asarray(cut[None] / 127.5 - 1)


def _encode(vae: Functional, config: VAEConfig, params: Params, x: jax.Array, key: jax.Array) -> jax.Array:
    """Scaled latents [1, h, w, C] drawn from a picture's [1, H, W, 3]."""

    @jax.jit
    def encode(params: Params, x: jax.Array) -> jax.Array:
        module = vae.bind(params)
        mean, logvar = module.moments(x)
        return module.scale(mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype))

    return encode(params, x)


def _decode(vae: Functional, params: Params, latents: jax.Array) -> np.ndarray:
    """Scaled latents [1, T', h, w, C] to pictures [T, H, W, 3] float32."""

    @jax.jit
    def decode(params: Params, latents: jax.Array) -> jax.Array:
        module = vae.bind(params)
        return module.decode(module.unscale(latents)).astype(jnp.float32)

    return np.asarray(decode(params, latents))[0]


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
