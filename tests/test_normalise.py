import numpy as np

from par_jax.normalise import LEAST_HALF_RANGE, scale_actions, unscale_actions

LOW, HIGH = [-2.0, 0.5, -1.0], [4.0, 1.5, -1.0]


def test_quantiles_go_to_one_and_nothing_is_clipped():
    scaled = scale_actions(np.array([LOW, HIGH, [7.0, 1.0, -1.0]]), LOW, HIGH)
    np.testing.assert_allclose(scaled, [[-1, -1, 0], [1, 1, 0], [2, 0, 0]], atol=1e-6)
    assert scaled.dtype == np.float32


def test_inverse():
    actions = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(unscale_actions(scale_actions(actions, LOW, HIGH), LOW, HIGH), actions, atol=1e-6)


def test_a_dimension_that_never_moves_hardly_moves_when_a_model_errs():
    moved = unscale_actions(np.array([0.0, 0.0, 0.5]), LOW, HIGH)
    assert abs(moved[2] - -1.0) <= 0.5 * LEAST_HALF_RANGE + 1e-7
