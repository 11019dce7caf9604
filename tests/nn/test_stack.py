import jax
import numpy as np
import pytest
from flax import nnx

from par_jax.nn.attention import Block
from par_jax.nn.stack import Stack


def _stack(remat="none"):
    return Stack(lambda rngs: Block(8, 2, rngs=rngs), 3, remat=remat, rngs=nnx.Rngs(0))


def _run(stack, x, **kwargs):
    return stack.scan(lambda block, x, _: (block(x), None), x, **kwargs)[0]


def test_scan_equals_the_blocks_one_by_one():
    stack, x = _stack(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    graphdef, state = nnx.split(stack.blocks)
    y = x
    for layer in range(3):
        y = nnx.merge(graphdef, jax.tree.map(lambda leaf, layer=layer: leaf[layer], state))(y)
    np.testing.assert_allclose(_run(stack, x), y, rtol=1e-5, atol=1e-5)


def test_blocks_start_different_and_halves_make_a_whole():
    stack, x = _stack(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    kernels = stack.blocks.mlp.fc1.kernel[...]
    assert kernels.shape == (3, 8, 32)
    assert not np.allclose(kernels[0], kernels[1])
    halves = _run(stack, _run(stack, x, stop=1), start=1)
    np.testing.assert_allclose(halves, _run(stack, x), rtol=1e-5, atol=1e-5)


def test_remat_changes_nothing_but_what_is_kept():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    kept, gradients = {}, {}
    for remat in ("none", "dots", "full"):
        graphdef, state = nnx.split(_stack(remat))

        def loss(state, x, graphdef=graphdef):
            return (_run(nnx.merge(graphdef, state), x) ** 2).mean()

        residuals = jax.tree.leaves(jax.eval_shape(lambda state, x, loss=loss: jax.vjp(loss, state, x)[1], state, x))
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)
        gradients[remat] = jax.grad(loss, argnums=(0, 1))(state, x)
        for ours, plain in zip(*(jax.tree.leaves(gradients[name]) for name in (remat, "none")), strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    assert kept["full"] < kept["dots"] < kept["none"]


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="unknown remat 'half': choose one of none, full, dots"):
        _stack("half")
