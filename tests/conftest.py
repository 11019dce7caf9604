"""What all tests share: strict dtypes, and programs that are quick to make. Warnings are errors by setup.cfg."""

import os
from pathlib import Path

# Most programs run a few times only. Read when jax is imported, also by the commands that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Whoever makes one first, of all workers, commands and later runs, makes it for all.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402

from par_jax.model import frame_encoder  # noqa: E402

# An int32 that meets a float32, or a bfloat16 that meets a float32, is written out or it is a mistake.
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Two sizes of a frame's known part to compile instead of sixteen.
frame_encoder.BUCKETS = 2
