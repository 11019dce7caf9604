"""The VAE's objective: weights that look for what moves, and a loss that training brings down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from par_jax.config import VAEConfig
from par_jax.losses_vae import motion_weight, vae_loss
from par_jax.model.vae import VAE

SMALL = VAEConfig(
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock3D"),
    up_block_types=("UpDecoderBlock3D",) * 2,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_num_groups=2,
)


def _pictures(count=8):
    """A grey picture in which one pixel's square moves along the diagonal."""
    pictures = np.zeros((count, 16, 24, 3), np.float32)
    for i in range(count):
        pictures[i, i : i + 3, 2 * i : 2 * i + 3] = (1, -1, 1)
    return pictures


def test_what_moves_counts_more():
    pictures = _pictures()
    weight = motion_weight(pictures)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-5)
    moving = (pictures != 0).all(-1)
    assert weight[..., 0][moving].min() > 4 * weight[:, 12:, :2].max()
    np.testing.assert_allclose(motion_weight(np.ones((4, 8, 8, 3), np.float32)), 1, rtol=1e-6)


def test_training_brings_the_loss_down():
    graphdef, params = nnx.split(VAE(SMALL, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(5e-3)
    pictures = jnp.asarray(_pictures())

    @jax.jit
    def step(params, state, key):
        (_, metrics), gradient = jax.value_and_grad(
            lambda p: vae_loss(nnx.merge(graphdef, p), pictures, key), has_aux=True
        )(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer's power
            updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, metrics

    state, first, key = optimizer.init(params), None, jax.random.key(1)
    for i in range(40):
        params, state, metrics = step(params, state, jax.random.fold_in(key, i))
        first = first or metrics
    assert metrics["reconstruction"] < 0.5 * first["reconstruction"]
    assert metrics["psnr"] > first["psnr"] + 6
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())


def test_the_weight_chooses_the_pixels():
    """Two weights that share out the pixels share out the error; the metric `psnr` knows no weight."""
    vae = VAE(SMALL, rngs=nnx.Rngs(0))
    pictures = jnp.asarray(_pictures(2))
    window = jnp.zeros((2, 16, 24, 1)).at[:, :8].set(2.0)
    graphdef, params = nnx.split(vae)

    @jax.jit
    def run(weight):
        return vae_loss(nnx.merge(graphdef, params), pictures, jax.random.key(0), weight)[1]

    inside, outside, all_alike = run(window), run(2.0 - window), run(jnp.ones_like(window))
    half = 0.5 * (inside["reconstruction"] + outside["reconstruction"])
    np.testing.assert_allclose(half, all_alike["reconstruction"], rtol=1e-4)
    assert inside["reconstruction"] != outside["reconstruction"]
    assert inside["psnr"] == outside["psnr"]
