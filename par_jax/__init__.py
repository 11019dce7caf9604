"""Physical autoregression for robot manipulation, in JAX."""
