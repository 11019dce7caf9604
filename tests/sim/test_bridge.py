import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from par_jax.sim import bridge  # noqa: E402

SHARED = ["float32", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "bool"]


def aligned(dtype, shape=(3, 5, 7)):
    """A tensor whose address is a multiple of 64."""
    tensor = torch.zeros(4096, dtype=torch.uint8)
    start = -tensor.data_ptr() % 64
    size = torch.empty(0, dtype=dtype).element_size() * int(np.prod(shape))
    return tensor[start : start + size].view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", SHARED)
def test_torch_to_jax_shares_memory(dtype):
    tensor = aligned(getattr(torch, dtype))
    array = bridge.to_jax(tensor)
    assert array.dtype == dtype
    assert array.shape == tuple(tensor.shape)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", SHARED)
def test_jax_to_torch_shares_memory(dtype):
    array = jnp.ones((3, 5, 7), dtype)
    tensor = bridge.to_torch(array)
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()


def test_there_and_back_is_the_same_memory():
    tensor = aligned(torch.float32)
    assert bridge.to_torch(bridge.to_jax(tensor)).data_ptr() == tensor.data_ptr()


def test_writing_on_the_torch_side_shows_in_jax():
    tensor = aligned(torch.float32)
    array = bridge.to_jax(tensor)
    kept = jnp.array(array, copy=True)
    tensor.fill_(7.0)
    assert np.asarray(array).max() == 7.0
    assert np.asarray(kept).max() == 0.0


def test_misaligned_memory_is_copied_with_its_values():
    tensor = aligned(torch.float32, (64,))[1:]
    tensor += torch.arange(63)
    array = bridge.to_jax(tensor)
    assert array.unsafe_buffer_pointer() != tensor.data_ptr()
    np.testing.assert_array_equal(np.asarray(array), np.arange(63, dtype=np.float32))


@pytest.mark.parametrize(
    "strided",
    [lambda x: x.transpose(0, 2), lambda x: x[:, ::2], lambda x: x[:1].expand(4, 5, 7), lambda x: x.flip(0)],
)
def test_strided_tensors_are_copied_with_their_values(strided):
    tensor = strided(torch.arange(3 * 5 * 7, dtype=torch.float32).reshape(3, 5, 7))
    np.testing.assert_array_equal(np.asarray(bridge.to_jax(tensor)), tensor.numpy())


def test_64_bits_become_32():
    assert bridge.to_jax(torch.tensor([1.5], dtype=torch.float64)).dtype == jnp.float32
    assert bridge.to_jax(torch.tensor([-(2**31)])).dtype == jnp.int32
    assert bridge.to_jax(torch.tensor([-(2**31)]))[0] == -(2**31)


def test_gradients_end_here():
    tensor = aligned(torch.float32).requires_grad_()
    assert bridge.to_jax(tensor).unsafe_buffer_pointer() == tensor.data_ptr()


def test_to_torch_waits_for_the_computation():
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: y @ x / 300, x))
    ones = jnp.ones((300, 300))
    np.testing.assert_allclose(bridge.to_torch(work(ones)).numpy(), 1.0, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available() or jax.default_backend() != "gpu", reason="needs a GPU in both")
def test_cuda_shares_memory_both_ways():
    tensor = torch.arange(64, dtype=torch.float32, device="cuda")
    array = bridge.to_jax(tensor)
    assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    assert bridge.to_torch(array * 2).device.type == "cuda"
    np.testing.assert_array_equal(np.asarray(array), np.arange(64))
