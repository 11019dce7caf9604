import jax
import numpy as np
from flax import nnx

from par_jax.nn.attention import Block
from par_jax.nn.stack import Stack


def _stack():
    return Stack(lambda rngs: Block(8, 2, rngs=rngs), 3, rngs=nnx.Rngs(0))


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


def test_remat_changes_nothing():
    stack, x = _stack(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    plain, remat = (
        jax.grad(lambda x, remat=remat: (_run(stack, x, remat=remat) ** 2).sum())(x) for remat in (False, True)
    )
    np.testing.assert_allclose(plain, remat, rtol=1e-4, atol=1e-5)
