"""Between torch and jax by DLPack: the same memory under two names, wherever it can be.

When a copy is made, torch to jax:
  never   float32, float16, bfloat16, uint8, int8..int32, bool; contiguous; on the CPU also 64-byte aligned. A
          ManiSkill picture is all that: torch aligns what it allocates to 64 bytes. (The `default` shader's: the
          `minimal` one's RGB is a strided view of RGBA.)
  always  float64 and int64, which jax (without x64) does not have: they become float32 and int32.
  always  strided or expanded tensors, which jax's importer refuses: `get_qpos()` of a part, a transposed picture.
  on CPU  where the address is no multiple of 64, because XLA's vector code assumes it: slices that start inside a
          buffer, and small arrays that the simulator allocated itself. On CUDA every allocation is 256-aligned.
jax to torch: never; jax's own buffers are contiguous and aligned. A jax float32, uint8, bool, int32 or bfloat16 array
becomes a torch tensor of the same address.

Aliasing: where nothing was copied, writing on one side shows on the other. jax arrays are taken to be immutable, so do
not write to a tensor made from one; and copy (`jnp.array(x, copy=True)`) a frame that must outlive the renderer's next
picture, where the renderer reuses its buffer (on CUDA it does, on the CPU each picture is a fresh one).

On CUDA both directions hand over on the current stream: the consumer's stream waits for the producer's.
"""

import jax
import torch

_NARROW = {torch.float64: torch.float32, torch.int64: torch.int32, torch.complex128: torch.complex64}


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A torch tensor as a jax array on the same device; see the module's head for when it is a copy.

    Args:
      tensor: any shape; on the CPU or a CUDA device that jax has too; may require gradients (they end here).

    Returns:
      the same shape and values; float64 and int64 become float32 and int32.
    """
    tensor = tensor.detach()
    tensor = tensor.to(_NARROW.get(tensor.dtype, tensor.dtype))
    return jax.dlpack.from_dlpack(tensor.resolve_conj().resolve_neg().contiguous())


def to_torch(array: jax.Array) -> torch.Tensor:
    """A jax array as a torch tensor on the same device, without a copy.

    Args:
      array: any shape, on one device. Waits until it is computed (torch would read it too early on the CPU).

    Returns:
      a tensor over the same memory: do not write to it.
    """
    return torch.from_dlpack(array.block_until_ready())
