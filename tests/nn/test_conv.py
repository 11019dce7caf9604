"""Winograd's way of a convolution against the plain one, and where it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from par_jax.nn import winograd
from par_jax.nn.conv import Conv


def exact(x, kernel):
    """The convolution in float64, by its definition."""
    x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    windows = [[x[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    return sum(windows[i][j] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 12), (3, 20, 4)])
def test_winograd_is_the_convolution(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, 5)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 5, 7)).astype(np.float32)
    found = jax.jit(winograd.convolve)(x, kernel)
    assert found.shape == (*shape, 7)
    np.testing.assert_allclose(found, exact(x, kernel), atol=5e-5)


def test_winograd_of_many_channels_stays_near_float32():
    """The frame VAE's widest layer: a relative error of 1e-5 is what parity with NOVA allows a whole part."""
    rng = np.random.default_rng(0)
    x = np.asarray(jax.nn.silu(rng.standard_normal((1, 8, 8, 512)).astype(np.float32)))
    kernel = (rng.standard_normal((3, 3, 512, 512)) / 68).astype(np.float32)
    right = exact(x, kernel)
    error = np.linalg.norm(jax.jit(winograd.convolve)(x, kernel) - right) / np.linalg.norm(right)
    assert error < 4e-6


@pytest.mark.parametrize(
    ("change", "picture", "dtype", "taken"),
    [
        ({}, (8, 8), jnp.float32, True),
        ({"features_in": 64}, (8, 8), jnp.float32, False),
        ({"stride": 2}, (8, 8), jnp.float32, False),
        ({"size": 1}, (8, 8), jnp.float32, False),
        ({"padding": (0, 2)}, (8, 8), jnp.float32, False),
        ({}, (8, 10), jnp.float32, False),
        ({}, (8, 8), jnp.bfloat16, False),
    ],
)
def test_conv_takes_winograd_where_it_is_right_and_pays(change, picture, dtype, taken):
    conv = Conv(**{"features_in": 128, "features_out": 256, "rngs": nnx.Rngs(0)} | change)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, *picture, change.get("features_in", 128))), dtype)
    graph = str(jax.make_jaxpr(lambda x: conv(x))(x))
    # The way of every other device stays there.
    assert ("optimization_barrier" in graph) == taken
    assert "conv_general_dilated" in graph
    if taken:
        conv.bias[...] = jnp.ones((256,))
        np.testing.assert_allclose(conv(x), exact(np.asarray(x), np.asarray(conv.kernel[...])) + 1, atol=1e-4)
