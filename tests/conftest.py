"""What all tests share: strict dtypes. That warnings are errors stands in setup.cfg."""

import jax

# An int32 that meets a float32, or a bfloat16 that meets a float32, is written out or it is a mistake.
jax.config.update("jax_numpy_dtype_promotion", "strict")
