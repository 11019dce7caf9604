"""The objective of `--stage=vae`: see every picture again through its latents, above all what moves in it."""

import jax
import jax.numpy as jnp

from par_jax.model.vae import VAE

KL_WEIGHT = 1e-4
MOTION = 8.0
SQUARES = 4.0
"""Of squared errors beside absolute ones: the goal of PickCube, a green ball of 20 pixels, is painted over without."""


def motion_weight(pictures: jax.Array, strength: float = MOTION) -> jax.Array:
    """Weights that look for what moves: 1 + strength * |picture - mean of the batch|, over their own mean.

    A cube 5 pixels wide is a 300th of the picture, and the rest is the same in all of them.

    Args:
      pictures: [N, H, W, 3] float in -1..1, seen by one fixed camera.
      strength: by how much a pixel that is one unit away from the mean counts more.

    Returns:
      [N, H, W, 1] float32 with mean 1.
    """
    x = pictures.astype(jnp.float32)
    weight = 1 + strength * jnp.abs(x - x.mean(0)).mean(-1, keepdims=True)
    return weight / weight.mean()


def vae_loss(
    vae: VAE, pictures: jax.Array, key: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted reconstruction through drawn latents, plus a small KL divergence from N(0, 1).

    Errors count by their amount and, `SQUARES` times, by their square.

    Args:
      vae: the model.
      pictures: [N, H, W, 3] float in -1..1.
      key: of the draw of the latents.
      weight: [N, H, W, 1] float32 of mean 1; default: `motion_weight(pictures)`.

    Returns:
      The loss, and metrics, float32 scalars: `reconstruction`, `kl` (nats a latent number), `psnr` (dB, all
      pixels alike, against their range of 2).
    """
    weight = motion_weight(pictures) if weight is None else weight
    mean, logvar = (part.astype(jnp.float32) for part in vae.moments(pictures))
    drawn = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, jnp.float32)
    seen = vae.decode_frames(vae.scale(drawn).astype(pictures.dtype))
    error = seen.astype(jnp.float32) - pictures.astype(jnp.float32)
    reconstruction = (weight * (jnp.abs(error) + SQUARES * jnp.square(error))).mean()
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
    psnr = 10 * jnp.log10(4 / jnp.square(error).mean())
    return reconstruction + KL_WEIGHT * kl, {"reconstruction": reconstruction, "kl": kl, "psnr": psnr}
