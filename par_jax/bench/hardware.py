"""What a device can do at most: arithmetic and memory traffic a second."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from par_jax.bench.timing import many

# Dense products in TFLOP/s (bfloat16; float32 inputs as TF32) and memory in TB/s, from NVIDIA's data sheets. The first
# name that is found in jax's `device_kind` decides.
KNOWN: tuple[tuple[str, float, float, float], ...] = (
    ("GB200", 2500.0, 1250.0, 8.0),
    ("B200", 2250.0, 1120.0, 8.0),
    ("H200", 989.4, 494.7, 4.8),
    ("H100 PCIe", 756.0, 378.0, 2.0),
    ("H100 NVL", 835.0, 417.5, 3.9),
    ("H100", 989.4, 494.7, 3.35),
    ("GH200", 989.4, 494.7, 4.0),
    ("A100-SXM4-80GB", 312.0, 156.0, 2.039),
    ("A100 80GB", 312.0, 156.0, 1.935),
    ("A100", 312.0, 156.0, 1.555),
    ("L40S", 362.0, 183.0, 0.864),
    ("L4", 121.0, 60.0, 0.3),
    ("A10", 125.0, 62.5, 0.6),
    ("RTX 4090", 165.2, 82.6, 1.008),
    ("RTX 3090", 71.0, 35.6, 0.936),
)


@dataclasses.dataclass(frozen=True)
class Peaks:
    """A device's limits.

    Attributes:
      flops: a second, of products in the computation's type; 0 where nobody knows.
      bandwidth: bytes a second; likewise.
      source: where the two come from, for people.
    """

    flops: float
    bandwidth: float
    source: str

    def floor(self, flops: float, bytes_read: float) -> tuple[float, float]:
        """Seconds that the arithmetic and the reading take at least; 0 where the limit is unknown."""
        return flops / self.flops if self.flops else 0.0, bytes_read / self.bandwidth if self.bandwidth else 0.0

    def or_higher(self, other: "Peaks") -> "Peaks":
        """The higher limits of two measurements."""
        return Peaks(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth), self.source)


def peaks(dtype: str, tflops: float | None = None, bandwidth: float | None = None) -> Peaks:
    """The limits of the device that jax computes on.

    Args:
      dtype: float32 or bfloat16.
      tflops: TFLOP/s, in place of what is known or measured.
      bandwidth: GB/s, likewise.
    """
    device = jax.config.jax_default_device or jax.devices()[0]
    if tflops and bandwidth:
        found = Peaks(0.0, 0.0, "given by flags")
    elif device.platform == "cpu":
        found = measured(dtype)
    else:
        found = known(device.device_kind, dtype)
    flops, memory = (given * scale if given else None for given, scale in ((tflops, 1e12), (bandwidth, 1e9)))
    return Peaks(flops or found.flops, memory or found.bandwidth, found.source)


def known(kind: str, dtype: str) -> Peaks:
    """From the table; zeros for a device that is not in it."""
    for name, half, single, memory in KNOWN:
        if name in kind:
            return Peaks((half if dtype == "bfloat16" else single) * 1e12, memory * 1e12, f"data sheet of {name}")
    return Peaks(0.0, 0.0, f"unknown device {kind!r}: give --peak_tflops and --bandwidth")


def measured(dtype: str) -> Peaks:
    """What a large product and a large copy reach just now."""
    size = 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    x = jnp.ones(2**26, jnp.float32)
    size_in_bytes = x.nbytes
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)  # into the same memory: new pages cost more than the copy

    def again() -> jax.Array:
        nonlocal x
        x = copy(x)
        return x

    seconds = many(lambda: product(a), 7).min(), many(again, 7).min()
    source = "measured in this run: a large product, a large copy"
    return Peaks(2 * size**3 / seconds[0], 2 * size_in_bytes / seconds[1], source)


def name() -> str:
    """The device, for people."""
    device: Any = jax.config.jax_default_device or jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{os.cpu_count()} cores of {model}"
