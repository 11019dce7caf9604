"""What all tests share: strict dtypes. That warnings are errors stands in setup.cfg."""

from collections.abc import Iterator

import jax
import pytest

# An int32 that meets a float32, or a bfloat16 that meets a float32, is written out or it is a mistake.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def hasty() -> Iterator[None]:
    """For programs that run a few times only: code that is quick to make serves best."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
